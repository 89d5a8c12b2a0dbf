"""Part of a machine: so many of its ranks, packed into as few nodes and groups as can be."""

from dataclasses import replace

from armillary.spec import Level, Machine, SpecError


def with_num_devices(machine: Machine, num_devices: int) -> Machine:
    """`num_devices` ranks of `machine`: part of one node, or whole nodes, next to each other.

    Raises: `SpecError` on less than one, on more than the machine has, and on part of a second
    node.
    """
    most, node = machine.num_ranks, machine.ranks_per_node
    if not 1 <= num_devices <= most:
        raise SpecError(
            "devices",
            f"{num_devices:,}",
            f"{machine.name} has 1 to {most:,} devices"
            + (f": {machine.num_nodes:,} nodes of {node}" if machine.num_nodes > 1 else ""),
            f"use at most {most:,}, or a larger machine (`armillary machines`)",
        )
    if num_devices <= node:
        return resized(machine, 1, num_devices)
    if num_devices % node:
        below = num_devices // node * node
        above = f" or {below + node:,}" if below + node <= most else ""
        raise SpecError(
            "devices",
            f"{num_devices:,} devices on nodes of {node}",
            "a job of more than one node has whole nodes",
            f"use {below:,}{above}",
        )
    return resized(machine, num_devices // node, node)


def resized(machine: Machine, num_nodes: int, ranks_per_node: int) -> Machine:
    """`machine` with so many nodes and ranks in each, more or fewer than it has.

    Adapters that fewer ranks share are shared by fewer, but no rank drives more of them than it
    would drive in a full node, or than one. Levels that the job does not reach are left out, and
    the outermost one ends where the job does. What other ranks of a node leave idle is not used.
    """
    total = num_nodes * ranks_per_node
    levels: list[Level] = []
    for level in machine.levels:
        inside = level.num_ranks <= machine.ranks_per_node
        wide = _inside(machine, level, ranks_per_node) if inside else _outside(machine, level)
        num_ranks = wide if inside else wide * ranks_per_node
        reached = levels[-1].num_ranks if levels else 1
        if num_ranks > reached and reached < total:
            levels.append(
                replace(
                    level,
                    num_ranks=min(num_ranks, total),
                    link_bytes_per_s=_link(machine, level, ranks_per_node),
                )
            )
    if levels and levels[-1].num_ranks < total:
        levels[-1] = replace(levels[-1], num_ranks=total)
    if not levels and total > 1:
        raise SpecError(
            f"{machine.name}.levels",
            "none",
            f"{total} ranks are linked by something",
            "use one device, or a machine with levels",
        )
    return replace(
        machine, num_nodes=num_nodes, ranks_per_node=ranks_per_node, levels=tuple(levels)
    )


def _inside(machine: Machine, level: Level, ranks_per_node: int) -> int:
    """Ranks of one unit of a level inside the node; the whole node stays the whole node."""
    if level.num_ranks == machine.ranks_per_node:
        return ranks_per_node
    return min(level.num_ranks, ranks_per_node)


def _outside(machine: Machine, level: Level) -> int:
    """Nodes of one unit of a level beyond the node."""
    return -(-level.num_ranks // machine.ranks_per_node)


def _link(machine: Machine, level: Level, ranks_per_node: int) -> float:
    """The rate of one rank through `level` when the node has so many ranks."""
    share = machine.nics_per_node * machine.nic_bytes_per_s / machine.ranks_per_node
    through_adapters = level.num_ranks > machine.ranks_per_node and (
        abs(level.link_bytes_per_s - share) <= 1e-9 * share
    )
    if not through_adapters or ranks_per_node == machine.ranks_per_node:
        return level.link_bytes_per_s
    wider = machine.nics_per_node * machine.nic_bytes_per_s / ranks_per_node
    return min(wider, max(share, machine.nic_bytes_per_s))
