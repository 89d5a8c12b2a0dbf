"""Memory of a device as a drawing: over the moments of a step, or by what the plan says."""

from collections.abc import Mapping, Sequence
from html import escape

from armillary.spec import Plan
from armillary.spec.quantities import size
from armillary.spec.rehearsal import Rehearsal

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 1000, 260, 60, 14, 26
MOST_MOMENTS = 400
SMALL = 0.15
"""Of less than this share of the capacity the drawing is made as high as what is held."""


def drawing(told: Rehearsal, plan: Plan) -> dict[str, object]:
    """An SVG of the bytes by category with the device's capacity as a line, and its key."""
    limit = plan.memory_limit_bytes
    record = told.record
    if record is not None and record.timeline:
        moments = record.timeline[:: max(len(record.timeline) // MOST_MOMENTS, 1)]
        labels = [moment.label for moment in moments]
        layers = _layers([moment.bytes for moment in moments])
        words = f"rank {record.rank:,}, fullest at {record.peak_at}: {size(record.peak_bytes)}"
    else:
        labels = ["the plan's fullest device", ""]
        held = {term.name: term.predicted_bytes for term in plan.memory}
        layers = _layers([held, held])
        words = f"as the plan says: {size(plan.predicted_memory_bytes)} on the fullest device"
        words += "; `--rank R` of a recipe's plan draws it over a step"
    return {
        "svg": _svg(layers, labels, limit),
        "words": f"{words}, of {size(limit)}",
        "names": [(index % 8, name) for index, name in enumerate(layers)],
    }


def _layers(moments: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Bytes by category over the moments, the largest category first."""
    names = sorted(
        {name for moment in moments for name in moment},
        key=lambda name: -max(moment.get(name, 0.0) for moment in moments),
    )
    return {name: [float(moment.get(name, 0.0)) for moment in moments] for name in names}


def _svg(layers: Mapping[str, Sequence[float]], labels: Sequence[str], limit: float) -> str:
    number = len(labels)
    totals = [sum(layer[i] for layer in layers.values()) for i in range(number)]
    most = max([*totals, 1.0])
    top = 1.06 * (max(limit, most) if most > SMALL * limit else 1.25 * most)

    def across(index: int) -> float:
        return LEFT + index / max(number - 1, 1) * (WIDTH - LEFT)

    def down(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="figure" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="bytes by category over a step, with the capacity of the device">'
    ]
    base = [0.0] * number
    for place, (name, layer) in enumerate(layers.items()):
        above = [low + own for low, own in zip(base, layer, strict=True)]
        points = [f"{across(i):.1f},{down(above[i]):.1f}" for i in range(number)]
        points += [f"{across(i):.1f},{down(base[i]):.1f}" for i in reversed(range(number))]
        title = f"<title>{escape(name)}: at most {size(max(layer))}</title>"
        joined = " ".join(points)
        parts.append(f'<polygon class="layer{place % 8}" points="{joined}">{title}</polygon>')
        base = above
    at = down(limit) if limit < top else TOP
    parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>')
    parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}">{size(limit)}</text>')
    if limit >= top:
        told = f"the capacity is {limit / most:,.0f} times as much, far above this drawing"
        parts.append(f'<text x="{LEFT + 8}" y="{at + 16:.1f}">{told}</text>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{down(most) + 4:.1f}">{size(most)}</text>'
        )
    parts.append(f'<text class="tick" x="{LEFT - 6}" y="{down(0) + 4:.1f}">0</text>')
    for index in (0, number - 1):
        anchor = "" if index == 0 else ' style="text-anchor:end"'
        parts.append(
            f'<text x="{across(index):.1f}" y="{HEIGHT - 6}"{anchor}>{escape(labels[index])}</text>'
        )
    return "".join([*parts, "</svg>"])
