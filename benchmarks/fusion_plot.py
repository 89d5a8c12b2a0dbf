"""The learning curves of the fusion study as one SVG file."""

import itertools
from html import escape
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, MARGIN = 720, 400, 56
LOWEST, HIGHEST = 0.6, 0.9
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
COLORS = ("#1f5fa8", "#c2410c", "#5b8c5a", "#8a4fa0")


def write_curves(path: Path, curves: dict[str, dict[str, list[float]]]) -> None:
    """One line a predictor: mean shot AUC against the share of the training shots, dots a draw."""

    def place(share: float, value: float) -> tuple[float, float]:
        height = (min(max(value, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
        x = MARGIN + share * (WIDTH - 5 * MARGIN)
        return round(x, 1), round(HEIGHT - MARGIN - height * (HEIGHT - 2 * MARGIN), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#1c2733">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="28" font-size="15">Shot AUC against training shots</text>',
    ]
    for value in np.arange(LOWEST, HIGHEST + 0.01, 0.05):
        (left, y), (right, _) = place(0, value), place(1, value)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#dfe4ea"/>')
        parts.append(f'<text x="{left - 34}" y="{y + 4}">{value:.2f}</text>')
    for share in SHARES:
        x, y = place(share, LOWEST)
        parts.append(f'<text x="{x}" y="{y + 20}" text-anchor="middle">{share:.0%}</text>')
    ends = sorted(((np.mean(list(c.values())[-1]), n) for n, c in curves.items()), reverse=True)
    heights = {name: MARGIN + 24 + 22 * i for i, (_, name) in enumerate(ends)}
    for color, (name, found) in zip(itertools.cycle(COLORS), curves.items(), strict=False):
        means = [place(float(n.strip("%")) / 100, float(np.mean(v))) for n, v in found.items()]
        line = " ".join(f"{x},{y}" for x, y in means)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        for n, values in found.items():
            for x, y in (place(float(n.strip("%")) / 100, value) for value in values):
                parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{color}" opacity="0.6"/>')
        parts.append(
            f'<text x="{WIDTH - 4 * MARGIN + 20}" y="{heights[name]}" fill="{color}">'
            f"{escape(name)}</text>"
        )
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
