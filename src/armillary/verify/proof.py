"""What was proven of recipes: a finding a layout, in words, as JSON, as a page and as a table."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.spec import Layout, SpecError, write_atomically
from armillary.step.recipe import Recipe
from armillary.step.versions import versions
from armillary.verify.check import EQUAL, REFUSED, Checker, Finding
from armillary.verify.compare import TOLERANCE, Difference
from armillary.verify.matrix import Rows, markdown, table, threes
from armillary.verify.matrix import layouts as all_layouts
from armillary.verify.prepare import NUM_STEPS, prepare
from armillary.verify.ranks import Ranks

NUM_SHOWN = 5
BEGIN, END = "<!-- what composes: begin -->", "<!-- what composes: end -->"


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """The findings of one recipe, the reduced size at which they were made, over how many steps,
    and how long it took.
    """

    recipe: str
    shrunk: str
    num_parameters: int
    num_steps: int
    taken_s: float
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether every layout is equal to the serial program, or refused."""
        return all(finding.state in (EQUAL, REFUSED) for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The proof for a program."""
        return {
            "recipe": self.recipe,
            "size": self.shrunk,
            "num_parameters": self.num_parameters,
            "num_steps": self.num_steps,
            "taken_s": round(self.taken_s, 1),
            "tolerance": TOLERANCE,
            "versions": versions(),
            "holds": self.holds,
            "findings": [finding_to_dict(finding) for finding in self.findings],
        }


def finding_to_dict(finding: Finding) -> dict[str, Any]:
    """A finding for a program: the layout, its state, and the worst tensors."""
    return {
        "layout": str(finding.layout),
        "num_ranks": finding.layout.num_ranks,
        "state": finding.state,
        "worst": finding.worst,
        "num_tensors": len(finding.differences),
        "suspects": list(finding.suspects),
        "reason": finding.reason,
        "differences": [difference_to_dict(d) for d in finding.differences[:NUM_SHOWN]],
    }


def difference_to_dict(difference: Difference) -> dict[str, Any]:
    """A difference for a program."""
    return {
        name: getattr(difference, name)
        for name in ("kind", "name", "difference", "rank", "pattern")
    }


def prove(
    recipe: Recipe,
    ranks: Ranks,
    layouts: Sequence[Layout] | int,
    *,
    num_steps: int = NUM_STEPS,
    started: Callable[[int], None] = lambda _: None,
    told: Callable[[Finding], None] = lambda _: None,
) -> Proof:
    """The proof of `recipe` over `layouts`, or over all layouts of up to so many ranks.

    `started` hears how many layouts there are, `told` of each finding.

    Raises: `SpecError` if the recipe cannot be loaded or run, or a layout that was asked for by
    name is refused.
    """
    begun_s = time.monotonic()
    prepared = prepare(recipe, num_steps=num_steps)
    wanted = all_layouts(layouts) if isinstance(layouts, int) else layouts
    started(len(wanted))
    findings = Checker(prepared, ranks).check_all(wanted, told)
    if isinstance(layouts, int):  # of an option only those choices count that a model admits
        findings = [f for f in findings if not (f.state == REFUSED and f.layout.options)]
    for finding in findings:
        if finding.refusal is not None and not isinstance(layouts, int):
            raise finding.refusal
    return Proof(
        recipe=recipe.name,
        shrunk=prepared.shrunk,
        num_parameters=prepared.graph.num_parameters,
        num_steps=num_steps,
        taken_s=time.monotonic() - begun_s,
        findings=tuple(findings),
    )


def write_proofs(proofs: Sequence[Proof], folder: Path) -> Path:
    """Write verify.json and report.html into `folder`; the page's path."""
    from armillary.verify.page import render

    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps([proof.to_dict() for proof in proofs], indent=2)
    write_atomically(folder / "verify.json", content + "\n")
    path = folder / "report.html"
    write_atomically(path, render(proofs, composition(proofs)))
    return path


def composition(proofs: Sequence[Proof]) -> list[Rows]:
    """What composes with what: a table of two axes, and one of three if three were run."""
    findings = {proof.recipe: proof.findings for proof in proofs}
    return [rows for rows in (table(findings), threes(findings)) if rows]


def write_table(proofs: Sequence[Proof], path: Path) -> None:
    """Put the tables of what composes into the file at `path`, between its two marks.

    Raises: `SpecError` if the file has no marks.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SpecError(
            str(path),
            "has no place for the table",
            f"the table stands between {BEGIN} and {END}",
            "add the two lines",
        )
    tables = "\n".join(markdown(rows) for rows in composition(proofs))
    write_atomically(path, f"{before}{BEGIN}\n\n{tables}\n{END}{after}")
