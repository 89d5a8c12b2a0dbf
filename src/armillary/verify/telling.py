"""What verify says while it works and at its end, on a terminal or in a log."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from armillary.spec import Layout
from armillary.verify.check import EQUAL, REFUSED, Finding
from armillary.verify.compare import TOLERANCE
from armillary.verify.matrix import refusals
from armillary.verify.proof import NUM_SHOWN, Proof, composition

MARKS = {EQUAL: "[green]equal"}


class Telling:
    """Progress over the layouts of a recipe; a quiet one says nothing. Goes to stderr, as a bar on
    a terminal, as a line a layout that was run in a log.
    """

    def __init__(self, recipe: str, *, quiet: bool) -> None:
        self.recipe, self.num_done, self.num_layouts = recipe, 0, 0
        self.console = console = Console(stderr=True, quiet=quiet, highlight=False)
        self.bar = Progress(
            TextColumn(recipe),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.task = self.bar.add_task(recipe, total=None, shown="")

    def started(self, num_layouts: int) -> None:
        """There are so many layouts."""
        self.num_layouts = num_layouts
        self.bar.start()
        self.bar.update(self.task, total=num_layouts)

    def told(self, finding: Finding) -> None:
        """One layout is done."""
        said = f"{finding.layout} {finding.state}"
        self.num_done += 1
        self.bar.update(self.task, advance=1, shown=said)
        if not self.console.is_terminal and finding.state != REFUSED:
            self.console.print(f"{self.recipe} {self.num_done}/{self.num_layouts} {said}")

    def ended(self) -> None:
        """All layouts are done."""
        self.bar.stop()


def note_plan(path: Path, layout: Layout) -> None:
    """Say on stderr as what layout the plan in a file is proven."""
    console = Console(stderr=True, highlight=False)
    console.print(f"{path} is proven as {layout} on {layout.num_ranks} local ranks", markup=False)


def print_proofs(proofs: Sequence[Proof], *, with_composition: bool) -> None:
    """Every proof, and what composes with what if asked for."""
    for proof in proofs:
        print_proof(proof)
    if with_composition:
        for rows in composition(proofs):
            print_composition(rows)


def print_proof(proof: Proof) -> None:
    """A line a layout, with the worst tensors of those that are wrong, and a line a reason for
    which others are refused.
    """
    console = Console(highlight=False)
    console.print(
        f"{proof.recipe}: {proof.num_parameters:,} parameters ({proof.shrunk})", markup=False
    )
    rows = Table("layout", "ranks", "", "worst", "", box=None)
    rows.columns[0].overflow = "fold"
    for finding in proof.findings:
        if finding.state == REFUSED:
            continue
        rows.add_row(
            str(finding.layout),
            str(finding.layout.num_ranks),
            MARKS.get(finding.state, f"[bold red]{finding.state}"),
            f"{finding.worst:.1e}" if finding.differences else "",
            _remark(finding),
        )
    if rows.row_count:
        console.print(rows)
    for reason, layouts in refusals(proof.findings):
        others = f" and {len(layouts) - 1} more" if layouts[1:] else ""
        why = reason.partition("\n")[0]
        console.print(f" refused {layouts[0]}{others}: {why}", markup=False)


def _remark(finding: Finding) -> str:
    if finding.state == EQUAL:
        return ""
    suspected = f"suspected: {', '.join(finding.suspects)}"
    if not finding.differences:
        return f"{finding.reason}; {suspected}"
    worst = [
        f"{d.kind} {d.name}: {d.difference:.1e} on rank {d.rank}; {d.pattern}"
        for d in finding.differences[:NUM_SHOWN]
        if not d.difference <= TOLERANCE
    ]
    return "\n".join([suspected, *worst])


def print_composition(rows: Sequence[Sequence[str]]) -> None:
    """What composes with what, as a table."""
    shown = Table(*rows[0], box=None)
    for row in rows[1:]:
        shown.add_row(*row)
    Console(highlight=False).print(shown)
