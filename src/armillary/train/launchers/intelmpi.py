"""Intel MPI: Hydra's mpiexec with variables of its own beside. Seen on 2021.18."""

from armillary.train.launchers.mpich import HYDRA, OF_INTEL
from armillary.train.launchers.place import Launcher, Variables


def is_here(variables: Variables) -> bool:
    """Whether Intel's Hydra started this process as a rank."""
    return all(name in variables for name in (*HYDRA, OF_INTEL))


LAUNCHER = Launcher(
    name="intelmpi",
    command="mpiexec",
    is_here=is_here,
    within=("slurm", "variables"),
    rank=("PMI_RANK",),
    world_size=("PMI_SIZE",),
    local_rank=("MPI_LOCALRANKID",),
    local_world_size=("MPI_LOCALNRANKS",),
    job=(OF_INTEL,),
)
