"""Curves on a page: drawings in SVG that need no script and take the page's colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from armillary.plan.plot import Scale, tick

SMALL, WIDE = (330, 220), (500, 300)
"""Width and height of a figure that stands in a row of three, and in one of two: as wide as it is
shown, so that its words are as large as those beside it."""
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 20, 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A line or points of a figure: `kind` is a class of the page's style, `told` what each says.

    `joined` draws the line, `dots` the points.
    """

    x: Sequence[float]
    y: Sequence[float]
    kind: str
    told: Sequence[str] = ()
    joined: bool = True
    dots: bool = True


def figure(
    traces: Sequence[Trace],
    *,
    x_label: str,
    y_label: str,
    log_y: bool = True,
    size: tuple[int, int] = SMALL,
) -> str:
    """An SVG of the traces on a logarithmic x axis; y from 0 unless `log_y`."""
    width, height = size
    x_scale = Scale.over([v for t in traces for v in t.x])
    values = [v for t in traces for v in t.y]
    y_scale = Scale.over(values)
    top = max(values, default=1.0) * 1.06 or 1.0

    def across(value: float) -> float:
        return LEFT + x_scale.place(value) * (width - LEFT - RIGHT)

    def down(value: float) -> float:
        share = y_scale.place(value) if log_y else value / top
        return height - BOTTOM - share * (height - TOP - BOTTOM)

    y_ticks = y_scale.ticks(5) if log_y else _even(top)
    parts = [
        f'<svg class="figure" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(y_label)} by {escape(x_label)}">'
    ]
    for value in y_ticks:
        at = down(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" {_same("y", at)}/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}">{tick(value)}</text>')
    for value in x_scale.ticks():
        at, foot = across(value), height - BOTTOM
        parts.append(f'<line class="grid" y1="{TOP}" y2="{foot}" {_same("x", at)}/>')
        parts.append(f'<text class="tick mid" x="{at:.1f}" y="{foot + 16}">{tick(value)}</text>')
    parts.append(
        f'<text class="label mid" x="{(LEFT + width - RIGHT) / 2}" y="{height - 6}">'
        f"{escape(x_label)}</text>"
        f'<text class="label" x="{LEFT}" y="{TOP - 8}">{escape(y_label)}</text>'
    )
    for trace in traces:
        parts += _drawn(
            trace, [(across(x), down(y)) for x, y in zip(trace.x, trace.y, strict=True)]
        )
    return "\n".join([*parts, "</svg>"])


def _drawn(trace: Trace, points: Sequence[tuple[float, float]]) -> list[str]:
    parts = []
    if trace.joined and len(points) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="{trace.kind}" points="{path}"/>')
    if trace.dots:
        for index, (x, y) in enumerate(points):
            said = escape(trace.told[index]) if index < len(trace.told) else ""
            title = f"<title>{said}</title>" if said else ""
            parts.append(
                f'<circle class="{trace.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.4">{title}</circle>'
            )
    return parts


def _same(axis: str, at: float) -> str:
    return f'{axis}1="{at:.1f}" {axis}2="{at:.1f}"'


def _even(top: float) -> list[float]:
    """Four or five even steps from 0 up to `top`."""
    for step in (10.0**p * s for p in range(-6, 12) for s in (1, 2, 2.5, 5)):
        if top / step <= 5:
            return [step * i for i in range(int(top / step) + 1)]
    return [0.0, top]
