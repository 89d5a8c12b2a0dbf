"""A machine's levels as a picture in SVG: boxes in boxes, with what links those of each level."""

from html import escape

from armillary.machines.words import amount, level_line, unit_line
from armillary.spec import Level, Machine

# At most so many boxes of a level are drawn; the rest are a number.
MOST_BOXES = 6
UNIT_WIDTH, UNIT_HEIGHT, GAP, HEAD = 168.0, 58.0, 14.0, 46.0
INK = ("#1b6ca8", "#2a9d8f", "#8d6a9f", "#c8553d", "#6b705c", "#264653")
FONT = "font-family='system-ui, sans-serif'"


def svg(machine: Machine) -> str:
    """The picture of `machine` as the text of an SVG file.

    Each level is drawn once, around one drawn unit of the level below and outlines of its
    siblings, so that the picture of 100,000 devices stays readable.
    """
    body, width, height = _device(machine)
    below: Level | None = None
    for index, level in enumerate(machine.levels):
        body, width, height = _around(
            body,
            (width, height),
            -(-level.num_ranks // (below.num_ranks if below else 1)),
            (unit_line(level, below), level_line(level)),
            INK[(index + 1) % len(INK)],
        )
        below = level
    title = escape(f"{machine.title or machine.name}: {machine.num_ranks:,} devices")
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' "
        f"width='{width:.0f}' height='{height:.0f}' role='img' aria-label='{title}'>\n"
        f"<title>{title}</title>\n<rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"
    )


def _device(machine: Machine) -> tuple[str, float, float]:
    device = machine.device
    lines = (
        device.title or device.name,
        f"{amount(device.memory_bytes)}B at {amount(device.memory_bytes_per_s)}B/s",
    )
    width = max(UNIT_WIDTH, 8.0 * max(map(len, lines)) + 2 * GAP)
    box = _box(0, 0, width, UNIT_HEIGHT, INK[0], fill="#eef4fa")
    return box + _text(GAP, 24, lines[0], bold=True) + _text(GAP, 44, lines[1]), width, UNIT_HEIGHT


def _around(
    inner: str, size: tuple[float, float], count: int, lines: tuple[str, str], ink: str
) -> tuple[str, float, float]:
    """`inner` as the first of `count` units in a box with a head of two lines."""
    unit_width, unit_height = size
    siblings = min(count, MOST_BOXES) - 1
    narrow = 26.0
    text_width = 7.4 * max(map(len, lines)) + 2 * GAP
    left = f", and {count - 1 - siblings:,} more" if count - 1 > siblings else ""
    more = 7.4 * len(left)
    width = max(text_width, 2 * GAP + unit_width + siblings * (narrow + GAP / 2) + GAP + more)
    height = HEAD + unit_height + 2 * GAP
    parts = [
        _box(0, 0, width, height, ink),
        _text(GAP, 20, lines[0], bold=True, ink=ink),
        _text(GAP, 38, lines[1]),
        f"<g transform='translate({GAP:.0f} {HEAD + GAP / 2:.0f})'>{inner}</g>\n",
    ]
    at = GAP + unit_width + GAP
    for _ in range(siblings):
        parts.append(_box(at, HEAD + GAP / 2, narrow, unit_height, ink, fill="#f6f6f6"))
        at += narrow + GAP / 2
    if left:
        parts.append(_text(at, HEAD + GAP / 2 + unit_height / 2, left.removeprefix(", ")))
    return "".join(parts), width, height


def _box(x: float, y: float, width: float, height: float, ink: str, fill: str = "white") -> str:
    return (
        f"<rect x='{x + 1:.1f}' y='{y + 1:.1f}' width='{width - 2:.1f}' "
        f"height='{height - 2:.1f}' rx='6' fill='{fill}' stroke='{ink}' stroke-width='1.5'/>\n"
    )


def _text(x: float, y: float, words: str, *, bold: bool = False, ink: str = "#222") -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {FONT} font-size='13' fill='{ink}'{weight}>"
        f"{escape(words)}</text>\n"
    )
