"""Numbers in words of a report: as many digits as mean something."""

from __future__ import annotations

import math
from typing import Any

MINUS = "−"


def short(value: Any, digits: int = 3) -> str:
    """`value` to `digits` significant digits, a dash for what is not a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size >= 7:
        text = f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    elif size >= digits:
        text = f"{value:,.0f}"
    else:
        text = f"{value:,.{max(0, digits - 1 - size)}f}"
        text = text.rstrip("0").rstrip(".") if isinstance(value, int) else text
    return text.replace("-", MINUS)


def interval(value: Any, low: Any, high: Any) -> str:
    """`2.28 [2.06, 2.50]`: decimals as the width of the interval warrants."""
    ends = [v for v in (low, high) if isinstance(v, int | float) and math.isfinite(v)]
    if len(ends) < 2 or not isinstance(value, int | float):
        return short(value)
    places = decimals(ends[1] - ends[0], value)
    rounded = [round(float(v), places) + 0.0 for v in (value, *ends)]  # + 0.0: no minus nought
    shown = [f"{v:,.{places}f}".replace("-", MINUS) for v in rounded]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def decimals(width: float, value: float) -> int:
    """Decimals that show two digits of `width`."""
    scale = width if width > 0 else abs(value)
    return 2 if scale <= 0 else min(8, max(0, 1 - math.floor(math.log10(scale))))


def duration(seconds: Any) -> str:
    """`3 h 04 min`, `4 min 10 s`, `9.2 s`."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{short(float(seconds), 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: Any) -> str:
    """Binary units: `1.5 MiB`."""
    if not isinstance(num_bytes, int | float) or not math.isfinite(num_bytes):
        return "–"
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{short(value)} {units[0]}"


def listing(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Rows of a table from nested values: dotted name, text."""
    if isinstance(value, dict):
        rows = [
            row
            for key, inner in value.items()
            for row in flat(inner, f"{name}.{key}" if name else str(key))
        ]
        return rows or [(name, "–")]
    if isinstance(value, list):
        return [(name, ", ".join(str(item) for item in value) or "–")]
    return [(name, "–" if value in (None, "") else str(value))]
