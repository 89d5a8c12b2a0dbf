"""What records of all kinds of ranks have otherwise than the axes tell, in words for people."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from armillary.spec.quantities import size
from armillary.spec.record import Difference
from armillary.spec.rehearsal import Rehearsal


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: of what, in which module, as told and as recorded, and how far off."""

    kind: str
    module: str
    planned: str
    recorded: str
    change: str


def rows(differences: Sequence[Difference]) -> Iterator[Row]:
    """The lines of the table; of equal lines of many modules one."""
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for one in differences:
        change = "no such" if not one.recorded else "untold"
        if one.planned and one.recorded:
            change = f"{100 * (one.recorded / one.planned - 1):+.1f} %"
        key = (one.kind, _words(one.planned, one.unit), _words(one.recorded, one.unit), change)
        alike.setdefault(key, []).append(one.module or "the whole")
    for (kind, planned, recorded, change), modules in alike.items():
        yield Row(kind, _named(modules), planned, recorded, change)


def summary(told: Rehearsal) -> str:
    """What was compared, in a sentence; "" where no rank was rehearsed."""
    if not told.compared_ranks:
        return ""
    number = len(told.compared_ranks)
    ranks = ", ".join(f"{rank:,}" for rank in told.compared_ranks)
    kinds = f"a rank of every kind ({ranks})" if number > 1 else f"rank {ranks}, as all are,"
    if not told.differences:
        return f"{kinds} holds and sends what the axes tell, message by message"
    return f"{kinds} beside what the axes tell: bytes of an average rank, messages of all ranks"


def _words(value: float, unit: str) -> str:
    return size(value) if unit == "bytes" else f"{value:,.0f} {unit}"


def _named(modules: Sequence[str]) -> str:
    if len(modules) < 3:
        return ", ".join(modules)
    return f"{modules[0]} … {modules[-1]} ({len(modules)})"
