"""Numbers of machines in words: amounts with a prefix, times in their unit, levels in a line."""

from armillary.spec import Level

PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SMALL = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def level_line(level: Level) -> str:
    """A level's link in words: topology, rate of a rank, latency, taper."""
    pair = level.shape.get("pair_bytes_per_s", 0.0)
    return (
        f"{level.network}: {amount(level.link_bytes_per_s)}B/s a device"
        + (f", {amount(pair)}B/s a pair" if pair else "")
        + f", {seconds(level.latency_s)}"
        + (f", taper {level.taper:g}" if level.taper > 1 else "")
    )


def in_unit(path: str, value: float) -> str:
    """A number as people read it, by the unit at the end of its name."""
    if path.endswith("_per_s") or path.startswith("device.peak_flops_per_s"):
        return f"{amount(value)}{'flop/s' if 'flops' in path else 'B/s'}"
    if path.endswith("_bytes"):
        return f"{amount(value)}B ({value / 2**30:,.2f} GiB)"
    if path.endswith("_s"):
        return seconds(value)
    if path.endswith("_w"):
        return f"{value:,.0f} W"
    return f"{value:,.4g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}"


def amount(value: float) -> str:
    """A number with a decimal prefix and a space: `amount(2.5e12)` is "2.5 T"."""
    for scale, prefix in PREFIXES:
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g} "


def seconds(value: float) -> str:
    """A time in its own unit: `seconds(2.7e-6)` is "2.7 us"."""
    for scale, unit in SMALL:
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} s"


def unit_line(level: Level, below: Level | None) -> str:
    """What one unit of a level holds, such as "node: 6 packages = 12 devices"."""
    if below is None:
        return f"{level.name}: {level.num_ranks:,} devices"
    count = -(-level.num_ranks // below.num_ranks)
    last = "" if level.num_ranks % below.num_ranks == 0 else ", the last one not full"
    return f"{level.name}: {count:,} {below.name}s{last} = {level.num_ranks:,} devices"
