"""A crossbar: every unit of a level reaches every other alike, at the link's rate."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import PIECES_INSIDE, at_link_rate, by_no_border, in_one_hop
from armillary.networks.joint import Index, Joint, Trips, Ways

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossbar:
    """Any pattern at the link's rate; a taper is one link that all messages share."""

    name: str
    fraction: float
    source: str
    step_factor: float = 1.0
    pieces: float = PIECES_INSIDE
    through_adapters: bool = False
    is_spread: bool = False

    bytes_per_s = at_link_rate
    num_hops = in_one_hop
    border = by_no_border

    def capacities(self, joint: Joint) -> Array:
        # Without a taper only the ports hold messages up.
        rate = joint.rank_bytes_per_s * joint.num_units * joint.unit_ranks
        return np.full(int(joint.level.taper > 1), rate)

    def ends(self, joint: Joint) -> Index:
        return np.full((int(joint.level.taper > 1), 2), -1)

    def ways(self, joint: Joint, trips: Trips) -> Ways:
        every = np.arange(trips.source.size if joint.level.taper > 1 else 0)
        return Ways(trip=every, link=np.zeros_like(every), share=np.ones(every.size))
