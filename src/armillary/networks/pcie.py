"""Cards behind a host's PCIe bridges: each has its slot's rate, and pairs share the host."""

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import PIECES_INSIDE, Pattern, by_no_border, in_one_hop
from armillary.networks.joint import Index, Joint, Trips, Ways
from armillary.spec.machine import Level

Array = NDArray[np.float64]


class Pcie:
    """The slot's rate for two cards; for k of them 2 / k of it, since all go through the host.

    Four L40S reach 5, eight 1.5 of the 21 GB/s that two reach: less than 2 / k, for those of one
    host bridge and of two sockets are told apart by no number here. Where it matters, give the
    level its own `collectives`.
    """

    name = "pcie"
    # All-gather of large tensors over 2 L40S: 21 of 32 GB/s.
    fraction = 0.66
    source = "NCCL table of aiconfigurator-core 0.12.0, 2 L40S"
    step_factor = 1.0
    pieces = PIECES_INSIDE
    through_adapters = False
    is_spread = False

    def bytes_per_s(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        link = level.link_bytes_per_s / level.taper
        if pattern == "pair":
            return np.full_like(num_units, link)
        return link * 2.0 / np.maximum(num_units, 2.0)

    num_hops = in_one_hop
    border = by_no_border

    def capacities(self, joint: Joint) -> Array:
        # The host's bridge, which all cards share.
        return np.array([2.0 * joint.rank_bytes_per_s])

    def ends(self, joint: Joint) -> Index:
        return np.full((1, 2), -1)

    def ways(self, joint: Joint, trips: Trips) -> Ways:
        every = np.arange(trips.source.size)
        return Ways(trip=every, link=np.zeros_like(every), share=np.ones(every.size))


NETWORK = Pcie()
