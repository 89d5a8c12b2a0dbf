"""Curves in a terminal: dots of Braille characters, on axes whose steps are decades."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

from armillary.spec.quantities import short

DOT_ROWS, DOT_COLUMNS = 4, 2
BRAILLE = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot of a Braille character, by row and column (Unicode, block 2800)."""
SPACED = (1.0, 2.0, 5.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Points of a plot, joined by a line of dots; or, with a `mark`, that character at each."""

    x: Sequence[float]
    y: Sequence[float]
    mark: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Values placed on 0 to 1 by their logarithm."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "Scale":
        """The scale that holds all of `values` that are above 0, a little beyond either end."""
        found = [v for v in values if v > 0 and math.isfinite(v)] or [1.0]
        low, high = math.log10(min(found)), math.log10(max(found))
        margin = max(0.04 * (high - low), 0.02)
        return cls(low - margin, high + margin)

    def place(self, value: float) -> float:
        """Where `value` lies: 0 at the low end, 1 at the high one."""
        return (math.log10(value) - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """At most `most` round values that lie on the scale, at least two where there are any."""
        decades = range(math.floor(self.low) - 1, math.ceil(self.high) + 1)
        for steps in (SPACED, (1.0, 3.0), (1.0,)):
            found = [step * 10.0**d for d in decades for step in steps]
            found = [v for v in found if 0 <= self.place(v) <= 1]
            if len(found) <= most:
                break
        if len(found) < 2:
            ends = (10 ** (self.low + (self.high - self.low) * part) for part in (0.1, 0.5, 0.9))
            return [_rounded(v) for v in ends]
        return found if len(found) <= most else found[:: -(-len(found) // most)]


def tick(value: float) -> str:
    """A round value beside an axis."""
    return (
        f"{value:,.4g}"
        if 1e-3 <= value < 1e4
        else f"{value:,.0f}"
        if 1 < value < 1e6
        else (short(value, 2))
    )


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def plot(
    curves: Sequence[Curve], *, x_label: str, y_label: str, width: int = 62, height: int = 13
) -> Text:
    """The curves on logarithmic axes as lines of text, `height` characters high without labels.

    Points that are not above 0 are left out.
    """
    x_scale = Scale.over([v for c in curves for v in c.x])
    y_scale = Scale.over([v for c in curves for v in c.y])
    cells: dict[tuple[int, int], tuple[str, str]] = {}
    for curve in curves:
        points = [
            (x_scale.place(x) * (width * DOT_COLUMNS - 1), y_scale.place(y))
            for x, y in zip(curve.x, curve.y, strict=True)
            if x > 0 and y > 0 and math.isfinite(x) and math.isfinite(y)
        ]
        placed = [(x, (1 - y) * (height * DOT_ROWS - 1)) for x, y in points]
        if curve.mark:
            for x, y in placed:
                cells[round(y) // DOT_ROWS, round(x) // DOT_COLUMNS] = (curve.mark, curve.style)
        else:
            _draw(placed, cells, curve.style)
    return _framed(cells, x_scale, y_scale, x_label, y_label, width, height)


def _draw(
    placed: Sequence[tuple[float, float]], cells: dict[tuple[int, int], tuple[str, str]], style: str
) -> None:
    """Set the dots of a line through the points, in the order in which they come."""
    ends = list(pairwise(placed)) or [(p, p) for p in placed]
    for (x0, y0), (x1, y1) in ends:
        num_dots = max(1, round(max(abs(x1 - x0), abs(y1 - y0))))
        for i in range(num_dots + 1):
            x = round(x0 + (x1 - x0) * i / num_dots)
            y = round(y0 + (y1 - y0) * i / num_dots)
            at = (y // DOT_ROWS, x // DOT_COLUMNS)
            before = cells.get(at, (chr(BRAILLE), style))[0]
            if BRAILLE <= ord(before) < BRAILLE + 256:
                bits = ord(before) | DOTS[y % DOT_ROWS][x % DOT_COLUMNS]
                cells[at] = (chr(bits), style)


def _framed(
    cells: dict[tuple[int, int], tuple[str, str]],
    x_scale: Scale,
    y_scale: Scale,
    x_label: str,
    y_label: str,
    width: int,
    height: int,
) -> Text:
    """The cells with a frame on two sides, the round values beside it and the labels."""
    y_ticks = {
        round((1 - y_scale.place(v)) * (height * DOT_ROWS - 1)) // DOT_ROWS: tick(v)
        for v in y_scale.ticks(max(3, height // 2))
    }
    gutter = max(len(text) for text in y_ticks.values())
    text = Text(no_wrap=True)
    text.append(f"{'':>{gutter}}  {y_label}, by {x_label}\n", style="dim")
    for row in range(height):
        told = y_ticks.get(row, "")
        text.append(f"{told:>{gutter}} {'┤' if told else '│'}", style="dim")
        for column in range(width):
            mark, style = cells.get((row, column), (" ", ""))
            text.append(mark, style=style)
        text.append("\n")
    axis, names = ["─"] * width, [" "] * (width + 8)
    free = 0
    for value in x_scale.ticks():
        at = round(x_scale.place(value) * (width - 1))
        axis[at] = "┬"
        name = tick(value)
        start = max(0, at - len(name) // 2)
        if start >= free and start + len(name) <= len(names):
            names[start : start + len(name)] = name
            free = start + len(name) + 1
    text.append(f"{'':>{gutter}} └{''.join(axis)}\n", style="dim")
    text.append(f"{'':>{gutter}}  {''.join(names).rstrip()}", style="dim")
    return text
