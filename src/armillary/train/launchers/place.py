"""Where a rank is among all: read from a launcher's variables, each field with its source."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from armillary.spec import SpecError

Variables = Mapping[str, str]
Hosts = tuple[tuple[str, ...], str]
"""Names of a job's nodes in order, and the variable that told them; empty where none did."""
NO_HOSTS: Hosts = ((), "")
TORCH = {
    "rank": "RANK",
    "world_size": "WORLD_SIZE",
    "local_rank": "LOCAL_RANK",
    "local_world_size": "LOCAL_WORLD_SIZE",
}
"""torch's own names of the fields; a site's script may export them beside the launcher's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One rank among those that a launcher started, and where they meet.

    `local_world_size` and `node_index` are None where nothing tells them. `sources` has the
    variable, or the reason, behind each field. `has_store` says that torch's own variables tell
    how the ranks meet, as under torchrun, whose agent serves the store.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int | None
    node: str
    node_index: int | None
    master_address: str
    master_port: int
    sources: Mapping[str, str]
    has_store: bool = False

    @property
    def is_on_one_node(self) -> bool:
        """Whether all ranks are known to be on this node."""
        return self.local_world_size == self.world_size

    def to_dict(self) -> dict[str, Any]:
        """Every field that is known: {name: {"value": ..., "from": ...}}."""
        found = {name: getattr(self, name) for name in self.sources}
        return {
            name: {"value": value, "from": self.sources[name]}
            for name, value in found.items()
            if value is not None
        }


def _nowhere(variables: Variables) -> Hosts:
    return NO_HOSTS


def _nothing(variables: Variables) -> dict[str, tuple[int, str]]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Launcher:
    """What starts ranks, and how its variables are read.

    `is_here` says whether it started this process as one of its ranks, and `hosts` the nodes of
    its job, also for ranks that another started inside. `within` names the launchers inside whose
    jobs it may start ranks of its own, whose variables then tell of it and not of its ranks. A
    field is a tuple of variables that tell the same; `worked_out` gives fields that stand in no
    variable of their own, with what they come from. `job` are variables equal on all its ranks.
    `has_store` is as for a `Place`.
    """

    name: str
    command: str
    is_here: Callable[[Variables], bool]
    hosts: Callable[[Variables], Hosts] = _nowhere
    within: tuple[str, ...] = ()
    rank: tuple[str, ...] = ()
    world_size: tuple[str, ...] = ()
    local_rank: tuple[str, ...] = ()
    local_world_size: tuple[str, ...] = ()
    node: tuple[str, ...] = ()
    node_index: tuple[str, ...] = ()
    job: tuple[str, ...] = ()
    worked_out: Callable[[Variables], dict[str, tuple[int, str]]] = _nothing
    has_store: bool = False


def told(launcher: Launcher, variables: Variables) -> dict[str, tuple[int, str]]:
    """{field: (number, variable)} of what the launcher and torch's own variables tell.

    Raises: `SpecError` where two variables disagree, or one holds no number.
    """
    found = dict(launcher.worked_out(variables))
    for name in (*TORCH, "node_index"):
        names = getattr(launcher, name) + ((TORCH[name],) if name in TORCH else ())
        for variable in dict.fromkeys(names):
            if variable not in variables:
                continue
            number = _number(variable, variables[variable])
            known, source = found.setdefault(name, (number, variable))
            if known != number:
                raise SpecError(
                    f"launcher.{name}",
                    f"{source} says {known}, {variable} says {number} ({launcher.name})",
                    "variables that tell the same of a rank agree; none is guessed "
                    "(train/launchers/place.py)",
                    f"unset {variable}, or start the ranks with one launcher alone",
                )
    return found


def _number(variable: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise SpecError(
            f"launcher.{variable}",
            repr(text),
            "a rank or a size is a whole number, 0 or more",
            f"unset {variable}, or set it right",
        )
    return int(text)


def checked(launcher: Launcher, found: Mapping[str, tuple[int, str]]) -> None:
    """Refuse fields that are absent or impossible together.

    Raises: `SpecError` naming the variables.
    """
    for name in ("rank", "world_size", "local_rank"):
        if name not in found:
            names = ", ".join(getattr(launcher, name)) or "no variable of its own"
            raise SpecError(
                f"launcher.{name}",
                f"{launcher.name} started this process, and nothing tells it ({names})",
                "a rank's place is told by its launcher, never worked out from other fields",
                f"export {TORCH[name]} for every rank",
            )
    for small, large in (
        ("rank", "world_size"),
        ("local_rank", "local_world_size"),
        ("local_world_size", "world_size"),
    ):
        if small not in found or large not in found:
            continue
        (value, source), (limit, limit_source) = found[small], found[large]
        if value > limit or (value == limit and small != "local_world_size"):
            raise SpecError(
                f"launcher.{small}",
                f"{source} says {value}, {limit_source} says {limit} ({launcher.name})",
                "ranks count from 0 and are fewer than their number; a node has some of them",
                f"unset {limit_source} or {source}: one is left over from another launcher",
            )
