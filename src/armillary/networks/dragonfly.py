"""Groups of routers that are all linked to each other, and a few links between two groups."""

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import Pattern
from armillary.spec.machine import Level

Array = NDArray[np.float64]


class Dragonfly:
    """Inside a group the link's rate; between groups the taper, by routing.

    Traffic of all groups to all goes the short way and gets `link_bytes_per_s` / `taper`. Where
    each group sends to one other at a time, the few links between the two would hold it up, and
    adaptive routing sends it over a third group: each message takes two of the links between
    groups, half of the above (Valiant). `shape.is_adaptive` = 0 says that a machine routes by the
    short way alone; then only the links between the two groups carry it.
    """

    name = "dragonfly"
    fraction = 1.0
    source = "adapters' rates; routing: Kim et al., ISCA 2008"
    # NCCL through libfabric on 2 nodes of Alps, 64 KiB to 128 MiB (docs/networks.md). Its own cost
    # model was made on InfiniBand.
    step_factor = 1.5
    pieces = 1.0
    through_adapters = True

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

    def num_hops(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        return np.ones_like(num_units)


NETWORK = Dragonfly()
