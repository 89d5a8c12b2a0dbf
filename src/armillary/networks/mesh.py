"""Every unit linked to every other by a link of their own (Xe-Link, Infinity Fabric, NVLink)."""

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import PIECES_INSIDE, Pattern, by_no_border, in_one_hop
from armillary.networks.joint import Index, Joint, Trips, Ways
from armillary.spec.machine import Level

Array = NDArray[np.float64]


class Mesh:
    """A rank's rate is spread over links to the other units; a group uses those to its members.

    `shape.pair_bytes_per_s` is what two ranks alone get; without it, an even share of
    `link_bytes_per_s` over the links to the other units.
    """

    name = "mesh"
    fraction = 0.78
    source = "as NVLink behind a switch (networks/switch.py); not measured on links of pairs"
    step_factor = 1.0
    pieces = PIECES_INSIDE
    through_adapters = False
    is_spread = True

    def bytes_per_s(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        link = level.link_bytes_per_s / level.taper
        pair = self._pair_bytes_per_s(level, most_units)
        if pattern == "pair":
            return np.full_like(num_units, pair)
        # k units have k - 1 rings without a shared link between them.
        return np.minimum(link, pair * np.maximum(num_units - 1.0, 1.0))

    num_hops = in_one_hop
    border = by_no_border

    def capacities(self, joint: Joint) -> Array:
        # Each rank has a link to each unit: [rank in its unit, its unit, the other unit].
        pair = self._pair_bytes_per_s(joint.level, float(joint.num_units))
        return np.full(joint.unit_ranks * joint.num_units**2, pair)

    def ends(self, joint: Joint) -> Index:
        _, source, target = np.indices((joint.unit_ranks, joint.num_units, joint.num_units))
        return np.stack([source.reshape(-1), target.reshape(-1)], 1)

    def ways(self, joint: Joint, trips: Trips) -> Ways:
        link = (trips.rank * joint.num_units + trips.source) * joint.num_units + trips.target
        return Ways(trip=np.arange(link.size), link=link, share=np.ones(link.size))

    def _pair_bytes_per_s(self, level: Level, most_units: float) -> float:
        link = level.link_bytes_per_s / level.taper
        pair = level.shape.get("pair_bytes_per_s", 0.0) or link / max(most_units - 1.0, 1.0)
        return min(link, pair)


NETWORK = Mesh()
