"""Which layouts are proven by `--all`: axes alone, in pairs and in threes, and every option; and
what is said of them all: what composes with what, and why the others are refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import prod

from armillary.axes import Axis, discover
from armillary.spec import Layout
from armillary.verify.check import EQUAL, REFUSED, Finding

Rows = list[list[str]]


def layouts(num_ranks: int) -> list[Layout]:
    """Every axis alone at degrees 2, 4 and 8 and with each of its options, every pair and every
    three of axes at degree 2, on up to `num_ranks` ranks.
    """
    axes = sorted(discover().values(), key=lambda axis: axis.order)
    found = [Layout(degrees={axis.name: d}) for axis in axes for d in (2, 4, 8) if d <= num_ranks]
    found += [layout for axis in axes for layout in _with_options(axis)]
    for count in (2, 3):
        if 2**count <= num_ranks:
            found += [
                Layout(degrees=dict.fromkeys((axis.name for axis in chosen), 2))
                for chosen in combinations(axes, count)
            ]
    return [layout for layout in found if prod(layout.degrees.values()) <= num_ranks]


def _with_options(axis: Axis) -> Iterable[Layout]:
    """The axis at degree 2 with each choice of an option that is not the default."""
    for option, choices in axis.options.items():
        for choice in choices[1:]:
            yield Layout(degrees={axis.name: 2}, options={f"{axis.name}.{option}": choice})


def table(findings: Mapping[str, Sequence[Finding]]) -> Rows:
    """What composes with what, as rows of words: axes by axes, the recipes proven in each cell.

    A cell names the recipes whose layout of the two axes (on the diagonal: of one) was proven
    equal; "refused" where every recipe was refused, and wrong ones are named as such, first.
    """
    names = _names()
    rows = [["", *names]]
    for i, row in enumerate(names):
        cells = [_cell(findings, {row, column}) if j <= i else "" for j, column in enumerate(names)]
        rows.append([row, *cells])
    return rows


def threes(findings: Mapping[str, Sequence[Finding]]) -> Rows:
    """The same of three axes at once: those that go with the same recipes in one row.

    Empty if no three axes were run together.
    """
    groups: dict[str, list[tuple[str, ...]]] = {}
    for chosen in combinations(_names(), 3):
        if cell := _cell(findings, set(chosen)):
            groups.setdefault(cell, []).append(chosen)
    order = sorted(groups, key=lambda cell: (not cell.startswith(WRONG), -cell.count(",")))
    rows = [[line, cell] for cell in order if cell != REFUSED for line in _describe(groups[cell])]
    if REFUSED in groups:
        refused = _describe(groups[REFUSED])
        rows.append([refused[0] if len(refused) == 1 else "all others", REFUSED])
    return [["three axes at once", "recipes"], *rows] if rows else []


def _describe(found: Sequence[tuple[str, ...]]) -> list[str]:
    """Sets of three axes in few lines: any three of so many, one and any two of them, or each."""
    everyone = [name for name in _names() if any(name in chosen for chosen in found)]
    common = [name for name in everyone if all(name in chosen for chosen in found)]
    others = [name for name in everyone if name not in common]
    count = 3 - len(common)
    if len(found) < 2 or len(found) != len([*combinations(others, count)]):
        return [", ".join(chosen) for chosen in found]
    any_of = f"any {COUNTS[count]} of {', '.join(others)}"
    return [" and ".join([*common, any_of])]


COUNTS = {1: "one", 2: "two", 3: "three"}
WRONG = "WRONG"


def _names() -> list[str]:
    """The axes in the order of a mesh."""
    return [axis.name for axis in sorted(discover().values(), key=lambda axis: axis.order)]


def _cell(findings: Mapping[str, Sequence[Finding]], axes: set[str]) -> str:
    states = {
        recipe: [f.state for f in found if set(f.layout.degrees) == axes]
        for recipe, found in findings.items()
    }
    wrong = [r for r, s in states.items() if any(state not in (EQUAL, REFUSED) for state in s)]
    proven = [r for r, s in states.items() if EQUAL in s and r not in wrong]
    if wrong:
        others = f"; equal: {', '.join(proven)}" if proven else ""
        return f"{WRONG}: {', '.join(wrong)}{others}"
    return ", ".join(proven) or (REFUSED if any(states.values()) else "")


def refusals(findings: Sequence[Finding]) -> list[tuple[str, list[str]]]:
    """Every reason for which layouts are refused, once but for its numbers, and those layouts; the
    reason of most of them first.
    """
    reasons: dict[str, tuple[str, list[str]]] = {}
    for finding in findings:
        if finding.state == REFUSED:
            words = re.sub(r"\d+", "", finding.reason)
            reasons.setdefault(words, (finding.reason, []))[1].append(str(finding.layout))
    return sorted(reasons.values(), key=lambda reason: -len(reason[1]))


def markdown(rows: Rows) -> str:
    """Rows of words as a table in Markdown; the first row is the head."""
    axes = re.compile(rf"\b({'|'.join(_names())})\b")
    head, *body = [[axes.sub(r"`\1`", first), *rest] for first, *rest in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
