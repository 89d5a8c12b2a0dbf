"""A dot-and-whisker plot as one SVG file, which documents and browsers show as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, LEFT, RIGHT, ROW, TOP = 860, 330, 130, 26, 64
COLORS = {"wall": "#9aa5b1", "cpu": "#1f5fa8"}


@dataclass(frozen=True, slots=True)
class Dot:
    """A row of the plot: a label, its kind of time, and a median with its interval."""

    label: str
    measure: str
    median: float
    low: float
    high: float


def write_plot(path: Path, title: str, dots: Sequence[Dot], goal: float) -> None:
    """Write `dots` on an axis of ratios, with lines at 1 and at `goal`."""
    least = min(0.9, *(d.low for d in dots))
    most = max(1.1, *(d.high for d in dots))
    least, most = max(least, 0.7) - 0.02, min(most, 1.3) + 0.02
    height = TOP + ROW * len(dots) + 50

    def x(ratio: float) -> float:
        share = (min(max(ratio, least), most) - least) / (most - least)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#1c2733">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="28" font-size="16" font-weight="600">{escape(title)}</text>',
        *_legend(),
        *_axis(x, least, most, goal, height),
    ]
    for i, dot in enumerate(dots):
        parts += _row(dot, x, TOP + ROW * i + ROW / 2)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _legend() -> list[str]:
    parts = []
    for i, (measure, color) in enumerate(COLORS.items()):
        at = 16 + 130 * i
        parts.append(
            f'<circle cx="{at + 5}" cy="46" r="5" fill="{color}"/>'
            f'<text x="{at + 16}" y="50">{measure} time</text>'
        )
    return parts


def _axis(x, least: float, most: float, goal: float, height: int) -> list[str]:
    bottom = height - 36
    parts = [
        f'<line x1="{x(r):.1f}" x2="{x(r):.1f}" y1="{TOP}" y2="{bottom}" stroke="{color}" '
        f'stroke-dasharray="{dash}"/>'
        for r, color, dash in [(1.0, "#1c2733", "none"), (goal, "#c2410c", "4 3")]
    ]
    tick = -(-least // 0.05) * 0.05
    while tick <= most:
        parts.append(
            f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle" '
            f'font-size="11">{tick:.2f}</text>'
        )
        tick += 0.05
    parts.append(
        f'<text x="{LEFT}" y="{bottom + 31}" font-size="11" fill="#52606d">our time / '
        f"theirs: left of 1 we are faster; dashed: the goal of {goal:g}</text>"
    )
    return parts


def _row(dot: Dot, x, y: float) -> list[str]:
    color = COLORS[dot.measure]
    return [
        f'<text x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(dot.label)}</text>',
        f'<line x1="{x(dot.low):.1f}" x2="{x(dot.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
        f'stroke="{color}" stroke-width="2"/>',
        f'<circle cx="{x(dot.median):.1f}" cy="{y:.1f}" r="5" fill="{color}"/>',
        f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4:.1f}" font-size="11">{dot.median:.3f} '
        f"({dot.low:.3f}–{dot.high:.3f})</text>",
    ]
