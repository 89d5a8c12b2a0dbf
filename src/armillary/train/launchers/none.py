"""No launcher: a process started alone starts its own ranks, on its own node."""

from armillary.spec import SpecError
from armillary.train.launchers.place import Launcher, Variables


def is_here(variables: Variables) -> bool:
    """Whether this is a rank of it: never, for its ranks are told by torch's agent."""
    return False


def refuse_idle_nodes(num_ranks: int, hosts: tuple[tuple[str, ...], str]) -> None:
    """Refuse to start the ranks of a whole job on its first node alone.

    Raises: `SpecError` if the job has several nodes.
    """
    names, source = hosts
    if num_ranks > 1 and len(names) > 1:
        raise SpecError(
            "launcher",
            f"no launcher started this process in a job of {len(names)} nodes ({source})",
            "ranks that a process starts itself are on its own node; the others would be idle "
            "(train/launchers/none.py)",
            "start it with srun or mpiexec, or `armillary submit` it",
        )


LAUNCHER = Launcher(name="none", command="armillary train", is_here=is_here)
