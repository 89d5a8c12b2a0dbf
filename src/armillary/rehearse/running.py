"""A rehearsal as the command runs it: the program of a rank, the step, and a bar meanwhile."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from armillary.rehearse.rehearsing import Progress, Rehearsed, rehearse, with_record
from armillary.rehearse.request import RehearsalRequest
from armillary.spec import Plan, SpecError

if TYPE_CHECKING:
    from armillary.spec.record import Record


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


def run(request: RehearsalRequest, record: "Record | None", telling: Telling) -> Rehearsed:
    """The rehearsal that is asked for, with the record of a rank if there is one."""
    with telling.working("rehearsing") as progress:
        found = rehearse(request.plan, request.workload, request.machine, request.wanted, progress)
    return with_record(found, record) if record is not None else found


def program_of(
    plan: Plan,
    rank: int,
    recipe: str,
    options: Mapping[str, str],
    data: Path | None,
    telling: Telling,
) -> "Record":
    """The program of one rank of the plan, built and run once on fake devices.

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
    from armillary.rehearse.program import record
    from armillary.step.recipe import load_recipe

    chosen = dict(options) | ({"path": str(data.resolve())} if data is not None else {})
    with telling.working(f"the program of rank {rank:,}"):
        found: Record = record(load_recipe(named, chosen), plan, rank)
    return found
