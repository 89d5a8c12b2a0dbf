"""MPICH: Hydra's mpiexec. Seen on 4.0.2 and 5.0.2."""

from armillary.train.launchers.place import Launcher, Variables

# Of all that set PMI_RANK, Hydra alone names the local rank so.
HYDRA = ("PMI_RANK", "MPI_LOCALRANKID")
OF_INTEL = "I_MPI_HYDRA_UUID"


def is_here(variables: Variables) -> bool:
    """Whether Hydra started this process as a rank, and it is not Intel's."""
    return all(name in variables for name in HYDRA) and OF_INTEL not in variables


LAUNCHER = Launcher(
    name="mpich",
    command="mpiexec",
    is_here=is_here,
    within=("slurm", "variables"),
    rank=("PMI_RANK",),
    world_size=("PMI_SIZE",),
    local_rank=("MPI_LOCALRANKID",),
    local_world_size=("MPI_LOCALNRANKS",),
)
