"""Who started this process: one file = one launcher, found by discovery; none of it needs torch."""

import importlib
import os
import pkgutil
from functools import cache

from armillary.spec import SpecError
from armillary.train.launchers.address import meeting_point
from armillary.train.launchers.place import Launcher, Place, Variables, checked, told

__all__ = ["Launcher", "Place", "discover", "find", "find_here", "job_hosts"]


@cache
def discover() -> dict[str, Launcher]:
    """The launchers by name: every file of this room that defines `LAUNCHER`."""
    found = {}
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        if hasattr(module, "LAUNCHER"):
            found[module.LAUNCHER.name] = module.LAUNCHER
    return found


def find_here() -> Place | None:
    """This process's place among a launcher's ranks, None if it was started alone."""
    return find(os.environ)


def find(variables: Variables) -> Place | None:
    """The place that `variables` tell of, None where they are those of a process started alone.

    A single task of a batch system or of an MPI counts as alone: what it starts are its own ranks.

    Raises: `SpecError` where variables contradict each other, or leave a rank's place open.
    """
    launcher = innermost(variables)
    if launcher is None:
        _refuse_half(variables)
        return None
    found = told(launcher, variables)
    checked(launcher, found)
    if found["world_size"][0] == 1 and "RANK" not in variables:
        return None
    hosts = _hosts(launcher, variables)
    node, node_source = _node(launcher, variables)
    is_on_one_node = found.get("local_world_size", (0,))[0] == found["world_size"][0]
    address, port = meeting_point(launcher, variables, hosts, is_on_one_node=is_on_one_node)
    numbers = {name: value for name, (value, _) in found.items()}
    return Place(
        launcher=launcher.name,
        rank=numbers["rank"],
        world_size=numbers["world_size"],
        local_rank=numbers["local_rank"],
        local_world_size=numbers.get("local_world_size"),
        node=node,
        node_index=numbers.get("node_index"),
        master_address=address[0],
        master_port=port[0],
        sources={name: source for name, (_, source) in found.items()}
        | {"node": node_source, "master_address": address[1], "master_port": port[1]},
        has_store=launcher.has_store,
    )


def innermost(variables: Variables) -> Launcher | None:
    """The launcher that started this process as a rank, inside whatever others; None if none did.

    Raises: `SpecError` if two did, neither of which starts ranks inside the other's.
    """
    here = [one for one in discover().values() if one.is_here(variables)]
    inner = [one for one in here if not any(one.name in other.within for other in here)]
    if len(inner) > 1:
        raise SpecError(
            "launcher",
            "variables of " + " and of ".join(sorted(one.name for one in inner)),
            "one launcher starts the ranks; which one cannot be told (train/launchers)",
            "unset the variables that are left over from the other",
        )
    return inner[0] if inner else None


def job_hosts(variables: Variables) -> tuple[tuple[str, ...], str]:
    """The nodes of the job that this process is in, and what told them; empty outside a job."""
    for launcher in discover().values():
        hosts = launcher.hosts(variables)
        if hosts[0]:
            return hosts
    return (), ""


def _hosts(launcher: Launcher, variables: Variables) -> tuple[tuple[str, ...], str]:
    """The nodes of the launcher's ranks, or of the job that they are in."""
    own = launcher.hosts(variables)
    return own if own[0] else job_hosts(variables)


def _node(launcher: Launcher, variables: Variables) -> tuple[str, str]:
    for name in launcher.node:
        if name in variables:
            return variables[name], name
    return os.uname().nodename, "this node's own name"


def _refuse_half(variables: Variables) -> None:
    """Refuse a number of ranks that no launcher stands behind.

    A script that exports WORLD_SIZE and then starts Python without its launcher trains alone
    otherwise, as many times as it is started.
    """
    text = variables.get("WORLD_SIZE", "1")
    if text != "1":
        raise SpecError(
            "launcher",
            f"WORLD_SIZE={text}, and no variable tells this process's rank",
            "ranks are started by a launcher, which tells each its place (train/launchers)",
            "start it with srun, mpiexec or torchrun, or unset WORLD_SIZE",
        )
