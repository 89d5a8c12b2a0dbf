"""A crossbar: every rank reaches every other at its full rate (NVLink with NVSwitch)."""

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import PIECES_INSIDE, Pattern
from armillary.networks.joint import Index, Joint, Trips, Ways
from armillary.spec.machine import Level

Array = NDArray[np.float64]


class Switch:
    """Any pattern at the link's rate."""

    name = "switch"
    # What large all-gathers and reduce-scatters over 8 tend to, pieces taken off: A100 217 and 227
    # of 300 GB/s, H100 370 and 347 of 450.
    fraction = 0.78
    source = "NCCL tables of aiconfigurator-core 0.12.0, fits of A100 and H100, 8 ranks"
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


NETWORK = Switch()
