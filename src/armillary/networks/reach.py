"""How a group lies in each level of a machine, and what a rank gets there."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from armillary.core.collectives import Array
from armillary.networks.discovery import network
from armillary.networks.door import Network, Pattern
from armillary.networks.fitted import FitTable
from armillary.networks.middleware import Protocol
from armillary.spec.machine import Level, Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Groups in one level, as columns.

    A group touches `touched` units of the level and `below` units of the one beneath it (ranks, at
    the innermost), `num_units` of them in each of its own, with `held` of its ranks in each.
    """

    level: Level
    network: Network
    is_inside_node: bool
    most_units: float
    below: Array
    touched: Array
    held: Array
    num_units: Array
    table: FitTable | None
    rates: dict[Pattern, Array] = field(default_factory=dict)

    def bytes_per_s(self, pattern: Pattern) -> Array:
        """What one rank sends through the level; of a large measured collective where known.

        `shape.fraction` of a level, such as 1 where its rate was measured, goes before the
        topology's.
        """
        if pattern not in self.rates:
            if self.table is not None and pattern != "pair":
                rate = self.table.bytes_per_s(self.held * self.num_units)
            else:
                reached = self.level.shape.get("fraction", self.network.fraction)
                rate = reached * self.network.bytes_per_s(
                    self.level, pattern, self.num_units, self.most_units
                )
            self.rates[pattern] = rate
        return self.rates[pattern]

    def steps_s(self, steps: Array, protocol: Protocol, pattern: Pattern) -> Array:
        """Seconds of `steps`: the library's own, or the wire's where that is longer."""
        own, trips = protocol.between_step_s, protocol.between_trips
        if self.is_inside_node:
            own, trips = protocol.inside_step_s, 1.0
        own *= self.network.step_factor
        hops = self.network.num_hops(self.level, pattern, self.num_units, self.most_units)
        wire = self.level.latency_s * hops * trips
        if protocol.waits:
            return np.asarray(steps * np.maximum(own, wire))
        return np.asarray(steps * own + (steps > 0) * wire)

    @property
    def rate_source(self) -> str:
        """Who says what share of the link's rate is reached."""
        return self.network.source if self.table is None else self.table.source(self.most_units)


def reaches(
    machine: Machine, touched: Sequence[Array], tables: Sequence[FitTable | None], ranks: Array
) -> list[Reach]:
    """The levels in which some of the groups send, innermost first."""
    found = []
    below, inner = ranks, 1
    for level, units, table in zip(machine.levels, touched, tables, strict=True):
        num_units = below / units
        if (num_units > 1).any():
            topology = network(level.network, f"machine.levels.{level.name}.network")
            found.append(
                Reach(
                    level=level,
                    network=topology,
                    is_inside_node=level.num_ranks <= machine.ranks_per_node
                    or not topology.through_adapters,
                    most_units=level.num_ranks / inner,
                    below=below,
                    touched=units,
                    held=ranks / below,
                    num_units=num_units,
                    table=table,
                )
            )
        below, inner = units, level.num_ranks
    return found
