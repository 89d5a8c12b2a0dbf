"""A machine whose links are so many times faster: for what a message costs without its bytes."""

from dataclasses import replace

from armillary.spec.machine import Machine

ENDLESS = 1e9
"""How many times faster a link is that takes no time: a gigabyte then takes less than a flop."""


def with_rates(machine: Machine, factor: float, level: str = "") -> Machine:
    """`machine` with links of `factor` times the rate, of one `level` or of all; latencies stay."""
    levels = []
    for one in machine.levels:
        if level and one.name != level:
            levels.append(one)
            continue
        shape = {n: v * factor if n.endswith("bytes_per_s") else v for n, v in one.shape.items()}
        fits = {
            name: tuple(
                replace(
                    fit,
                    bytes_per_s=fit.bytes_per_s * factor,
                    root_s_per_sqrt_byte=fit.root_s_per_sqrt_byte / factor**0.5
                    if factor < ENDLESS
                    else 0.0,
                )
                for fit in fits
            )
            for name, fits in one.collectives.items()
        }
        rate = one.link_bytes_per_s * factor
        levels.append(replace(one, link_bytes_per_s=rate, shape=shape, collectives=fits))
    nic_bytes_per_s = machine.nic_bytes_per_s * (factor if not level else 1.0)
    return replace(machine, levels=tuple(levels), nic_bytes_per_s=nic_bytes_per_s)


def with_endless_rates(machine: Machine) -> Machine:
    """`machine` with links that carry any message in no time once it has started."""
    return with_rates(machine, ENDLESS)
