"""RANK, WORLD_SIZE and LOCAL_RANK, exported by a script of one's own for each process."""

from armillary.train.launchers.place import Launcher, Variables


def is_here(variables: Variables) -> bool:
    """Whether torch's own variables name a rank."""
    return "RANK" in variables and "WORLD_SIZE" in variables


LAUNCHER = Launcher(
    name="variables",
    command="a script that exports RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT",
    is_here=is_here,
    has_store=True,  # MASTER_ADDR may be a service's, which no rank could listen on
)
