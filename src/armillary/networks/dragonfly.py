"""Groups of routers that are all linked to each other, and a few links between two groups."""

import numpy as np
from numpy.typing import NDArray

from armillary.networks.adaptive import adaptive_ways
from armillary.networks.door import Pattern, by_no_border, in_one_hop
from armillary.networks.joint import Index, Joint, Trips, Ways, no_ways
from armillary.spec.machine import Level

Array = NDArray[np.float64]


class Dragonfly:
    """Inside a group the link's rate; between groups the taper, by routing.

    Traffic of all groups to all goes the short way and gets `link_bytes_per_s` / `taper`. Where
    each group sends to one other at a time, the few links between the two would hold it up, and
    adaptive routing sends it over a third group: each message takes two of the links between
    groups, half of the above (Valiant). `shape.is_adaptive` = 0 says that a machine routes by the
    short way alone; then only the links between the two groups carry it.

    Of flows the part that goes the short way is that which evens out the load of the links, by
    what the ports offer: all of it where the links are not overfull (`networks/adaptive.py`);
    `shape.is_adaptive` = 2 sends all by third groups (Valiant). Groups without a taper hold nothing
    up: the routers of one group are taken to carry what its ports send, by adaptive routing too.
    """

    name = "dragonfly"
    fraction = 1.0
    source = "adapters' rates; routing: Kim et al., ISCA 2008"
    # NCCL through libfabric on 2 nodes of Alps, 64 KiB to 128 MiB (docs/networks.md). Its own cost
    # model was made on InfiniBand.
    step_factor = 1.5
    pieces = 1.0
    through_adapters = True
    is_spread = False

    def bytes_per_s(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        link = level.link_bytes_per_s
        everywhere = link / level.taper
        if pattern == "all" or level.taper == 1.0:
            return np.full_like(num_units, everywhere)
        if level.shape.get("is_adaptive", 1.0):
            # Of k groups all are third groups of each other: the whole machine helps to carry.
            return np.full_like(num_units, everywhere / 2.0)
        return np.full_like(num_units, everywhere / max(most_units - 1.0, 1.0))

    num_hops = in_one_hop
    border = by_no_border

    def capacities(self, joint: Joint) -> Array:
        if joint.level.taper == 1.0:
            return np.zeros(0)
        # [from, to]: what the ranks of a unit get beyond it, evenly over the other units. One
        # number stands for all, for a machine of single routers has millions of links.
        others = max(joint.num_units - 1.0, 1.0)
        pair = joint.rank_bytes_per_s * joint.unit_ranks / others
        return np.broadcast_to(pair, (joint.num_units**2,))

    def ends(self, joint: Joint) -> Index:
        if joint.level.taper == 1.0:
            return np.zeros((0, 2), np.int64)
        source, target = np.indices((joint.num_units, joint.num_units))
        return np.stack([source.reshape(-1), target.reshape(-1)], 1)

    def ways(self, joint: Joint, trips: Trips) -> Ways:
        if joint.level.taper == 1.0:
            return no_ways()
        k = joint.num_units
        pairs, pair = np.unique(
            (trips.unit * k + trips.source) * k + trips.target, return_inverse=True
        )
        capacity = float(self.capacities(joint)[0])
        offered = np.bincount(pair, trips.offered, pairs.size) / capacity
        kind = joint.level.shape.get("is_adaptive", 1.0)
        if kind == 0 or k < 3:
            found = Ways(
                trip=np.arange(pairs.size), link=pairs % (k * k), share=np.ones(pairs.size)
            )
        else:
            found = adaptive_ways(pairs, offered, k, trips.seed, all_long=kind == 2)
        return Ways(trip=found.trip, link=found.link, share=found.share, bundle=pair)


NETWORK = Dragonfly()
