"""Processes of one computer that talk over its memory: what one sends, the others wait for."""

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import PIECES_INSIDE, Pattern
from armillary.networks.joint import Index, Joint, Trips, Ways
from armillary.spec.machine import Level

Array = NDArray[np.float64]


class Loopback:
    """The memory's rate as `link_bytes_per_s` gives it to one rank, when all are at it."""

    name = "loopback"
    fraction = 1.0
    source = "the link's rate is measured with all ranks at it (docs/networks.md)"
    step_factor = 1.0
    pieces = PIECES_INSIDE
    through_adapters = False
    is_spread = False

    def bytes_per_s(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        return np.full_like(num_units, level.link_bytes_per_s / level.taper)

    def num_hops(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        return np.ones_like(num_units)

    def capacities(self, joint: Joint) -> Array:
        # A taper is one link that all messages share; without one only the ports hold them up.
        rate = joint.rank_bytes_per_s * joint.num_units * joint.unit_ranks
        return np.full(int(joint.level.taper > 1), rate)

    def ends(self, joint: Joint) -> Index:
        return np.full((int(joint.level.taper > 1), 2), -1)

    def ways(self, joint: Joint, trips: Trips) -> Ways:
        every = np.arange(trips.source.size if joint.level.taper > 1 else 0)
        return Ways(trip=every, link=np.zeros_like(every), share=np.ones(every.size))

    def border(self, joint: Joint, source: Index, is_outward: bool) -> Index:
        return np.full(source.shape, -1, np.int64)


NETWORK = Loopback()
