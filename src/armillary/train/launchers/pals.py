"""PALS: the mpiexec of Aurora and Polaris. Read in ALCF's user guides (2026-08-19), not run on."""

from armillary.train.launchers.place import Launcher, Variables


def is_here(variables: Variables) -> bool:
    """Whether PALS started this process as a rank."""
    return "PALS_RANKID" in variables


LAUNCHER = Launcher(
    name="pals",
    command="mpiexec",
    is_here=is_here,
    within=("variables",),
    # PMIX_RANK instead of PMI_RANK with --pmi=pmix, which names no size: WORLD_SIZE has to.
    rank=("PALS_RANKID", "PMI_RANK", "PMIX_RANK"),
    world_size=("PMI_SIZE",),
    local_rank=("PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"),
    local_world_size=("PMI_LOCAL_SIZE",),
    node_index=("PALS_NODEID",),
    job=("PBS_JOBID",),
)
