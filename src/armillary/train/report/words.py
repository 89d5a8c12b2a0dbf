"""Numbers in words of a report: as many digits as mean something."""

from __future__ import annotations

import math
from typing import Any

from armillary.spec.quantities import MINUS as MINUS
from armillary.spec.quantities import duration as duration
from armillary.spec.quantities import short as short
from armillary.spec.quantities import size as size


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
