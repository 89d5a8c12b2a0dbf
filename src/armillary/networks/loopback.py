"""Processes of one computer that talk over its memory: what one sends, the others wait for."""

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import PIECES_INSIDE, Pattern
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

    def bytes_per_s(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        return np.full_like(num_units, level.link_bytes_per_s / level.taper)

    def num_hops(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        return np.ones_like(num_units)


NETWORK = Loopback()
