"""A grid of ranks, each linked to its two neighbours along every dim, closed to rings."""

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import Pattern
from armillary.spec.machine import Level

Array = NDArray[np.float64]


class Torus:
    """Neighbours use all links; traffic to everyone is held by the cut through the middle.

    `link_bytes_per_s` is the rate of a rank's links together, two along each of
    `shape.num_dims` dims (3 where it is not given). A group is taken to be a compact block with
    equal sides; where it is the whole torus, its rings are closed.
    """

    name = "torus"
    fraction = 0.96
    source = "as a ring between nodes (networks/fat_tree.py); not measured on a torus"
    step_factor = 1.0
    pieces = 0.2
    through_adapters = True

    def bytes_per_s(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        link = level.link_bytes_per_s / level.taper
        dims = level.shape.get("num_dims", 3.0)
        if pattern == "pair":
            return np.full_like(num_units, link / (2.0 * dims))
        if pattern == "ring":
            return np.full_like(num_units, link)
        # A message goes side / 4 links along each of the dims, of which each link carries one.
        return link / np.maximum(self._mean_distance(num_units, dims), 1.0)

    def num_hops(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        if pattern in ("ring", "pair"):
            return np.ones_like(num_units)
        return np.maximum(self._mean_distance(num_units, level.shape.get("num_dims", 3.0)), 1.0)

    def _mean_distance(self, num_units: Array, dims: float) -> Array:
        return np.asarray(dims * num_units ** (1.0 / dims) / 4.0)


NETWORK = Torus()
