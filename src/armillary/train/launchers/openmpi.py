"""Open MPI: mpiexec or mpirun. Seen on 4.1.4 and 5.0.11."""

from armillary.train.launchers.place import Launcher, Variables


def is_here(variables: Variables) -> bool:
    """Whether Open MPI started this process as a rank."""
    return "OMPI_COMM_WORLD_RANK" in variables


LAUNCHER = Launcher(
    name="openmpi",
    command="mpiexec",
    is_here=is_here,
    within=("slurm", "variables"),
    # PMIX_RANK stands beside it from version 5 on. OMPI_COMM_WORLD_NODE_RANK is no node's index.
    rank=("OMPI_COMM_WORLD_RANK", "PMIX_RANK"),
    world_size=("OMPI_COMM_WORLD_SIZE",),
    local_rank=("OMPI_COMM_WORLD_LOCAL_RANK",),
    local_world_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    job=("PMIX_NAMESPACE",),
)
