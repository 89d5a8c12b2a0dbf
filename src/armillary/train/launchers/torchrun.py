"""torchrun: an agent on each node starts its ranks and serves the store. Variables seen in 2.13."""

from armillary.train.launchers.place import Launcher, Variables


def is_here(variables: Variables) -> bool:
    """Whether torch's elastic agent started this process."""
    return "TORCHELASTIC_RUN_ID" in variables and "RANK" in variables


LAUNCHER = Launcher(
    name="torchrun",
    command="torchrun",
    is_here=is_here,
    # One agent a node, started by whatever starts one process a node.
    within=("slurm", "openmpi", "mpich", "intelmpi", "pals", "variables"),
    node_index=("GROUP_RANK",),
    job=("TORCHELASTIC_RUN_ID",),
    has_store=True,
)
