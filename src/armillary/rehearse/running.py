"""A rehearsal as the command runs it: the program of a rank, the step, and a bar meanwhile."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from armillary.rehearse.rehearsing import Progress, Rehearsed, rehearse
from armillary.rehearse.request import RehearsalRequest
from armillary.spec import Plan, SpecError

if TYPE_CHECKING:
    from armillary.spec.record import Difference, Record


class Telling:
    """What is shown while it works: a line that changes on a terminal, nothing elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    @contextmanager
    def working(self, first: str) -> Iterator[Progress]:
        """Something that is told what is being done."""
        if not self.console.is_terminal:
            yield lambda words: None
            return
        with self.console.status(first) as status:
            yield lambda words: status.update(f"rehearsing: {words}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Programs:
    """The record of the rank that is asked for; what records of `ranks`, one of every kind, have
    otherwise than the axes tell.
    """

    record: "Record"
    ranks: tuple[int, ...]
    differences: "tuple[Difference, ...]"


def run(request: RehearsalRequest, programs: Programs | None, telling: Telling) -> Rehearsed:
    """The rehearsal that is asked for, with the programs of ranks if there are some."""
    with telling.working("rehearsing") as progress:
        found = rehearse(request.plan, request.workload, request.machine, request.wanted, progress)
    if programs is None:
        return found
    told = replace(
        found.rehearsal,
        record=programs.record,
        compared_ranks=programs.ranks,
        differences=programs.differences,
    )
    return replace(found, rehearsal=told)


def programs_of(
    plan: Plan,
    rank: int,
    recipe: str,
    options: Mapping[str, str],
    data: Path | None,
    telling: Telling,
) -> Programs:
    """The program of one rank of the plan, built and run once on fake devices, and those of a rank
    of every kind, held against what the axes tell of all.

    Raises: `SpecError` if the plan is of no recipe, or its program cannot run so.
    """
    named = recipe or plan.model
    if ":" in named:
        raise SpecError(
            "--rank",
            f"a plan of the family {named.partition(':')[0]}",
            "a rank's program is built from a recipe; a family has sizes alone",
            "plan a recipe, or name one: --recipe my_case.py",
        )
    from armillary.rehearse.program import differences, ranks_that_differ, record
    from armillary.step.recipe import load_recipe, source_sha256

    if not recipe and source_sha256(named) is None:
        raise SpecError(
            "--recipe",
            f"none, and there is no recipe {named!r} to be found",
            "a plan has its recipe's name, not where its file lies",
            f"name the file: --recipe {named}.py",
        )
    chosen = dict(options) | ({"path": str(data.resolve())} if data is not None else {})
    case = load_recipe(named, chosen)
    with telling.working(f"the program of rank {rank:,}") as progress, warnings.catch_warnings():
        # what torch tells of its own doors helps nobody who rehearses; a model's own word is heard
        warnings.filterwarnings("ignore", module=r"torch(\.|$)")
        own: Record = record(case, plan, rank)
        records = []
        for kind in ranks_that_differ(case, plan):
            progress(f"the program of rank {kind.rank:,} ({kind.reason})")
            is_own = kind.rank == rank and kind.load == 1.0
            found = own if is_own else record(case, plan, kind.rank, load=kind.load)
            records.append(replace(found, num_stands_for=kind.num_ranks, reason=kind.reason))
        progress("what the axes tell")
        return Programs(
            record=own,
            ranks=tuple(one.rank for one in records),
            differences=differences(case, records),
        )
