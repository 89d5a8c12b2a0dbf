"""Numbers in words: as many digits as mean something, with their unit."""

import math
from typing import Any

MINUS = "−"
UNKNOWN = "–"


def short(value: Any, digits: int = 3) -> str:
    """`value` to `digits` significant digits, a dash for what is not a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return UNKNOWN
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


def duration(seconds: Any) -> str:
    """`3 h 04 min`, `4 min 10 s`, `9.2 s`."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 60:
        return f"{short(float(seconds), 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def span(seconds: Any) -> str:
    """`870 µs`, `3.42 ms`, `12.1 s`, `4 min 10 s`, `3 h 04 min`, `5 d 3 h`."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return UNKNOWN
    for limit, scale, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (60.0, 1.0, "s")):
        if seconds < limit:
            return f"{short(float(seconds) * scale)} {unit}" if seconds else "0 s"
    if seconds < 48 * 3600:
        return duration(seconds)
    hours = round(seconds / 3600)
    return f"{hours // 24:,} d {hours % 24} h"


def size(num_bytes: Any) -> str:
    """Binary units: `1.5 MiB`."""
    if not isinstance(num_bytes, int | float) or not math.isfinite(num_bytes):
        return UNKNOWN
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{short(value)} {units[0]}"


def count(number: Any) -> str:
    """Decimal multiples: `1.1 trillion`, `175 billion`, `12.3 million`, `5,120`."""
    for limit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= limit:
            return f"{short(float(number) / limit)} {name}"
    return f"{number:,.0f}"


def energy(joules: Any) -> str:
    """`830 J`, `24.4 kJ`, `3.2 kWh`, `1.4 MWh`."""
    if not isinstance(joules, int | float) or not math.isfinite(joules):
        return UNKNOWN
    for limit, scale, unit in ((1e3, 1.0, "J"), (3.6e5, 1e3, "kJ")):
        if joules < limit:
            return f"{short(float(joules) / scale)} {unit}"
    kwh = joules / 3.6e6
    for limit, scale, unit in ((1e3, 1.0, "kWh"), (1e6, 1e3, "MWh")):
        if kwh < limit:
            return f"{short(kwh / scale)} {unit}"
    return f"{short(kwh / 1e6)} GWh"


def device_time(hours: Any) -> str:
    """Time of devices in hours, or, where it is less than one, as `span` says it."""
    if not isinstance(hours, int | float) or not math.isfinite(hours):
        return UNKNOWN
    return f"{short(float(hours))} h" if hours >= 1 else span(float(hours) * 3600)
