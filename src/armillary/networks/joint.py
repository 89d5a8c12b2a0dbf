"""What a topology is asked for flow by flow: the links of one unit, and ways through them."""

# Shapes: T trips, L links of one unit of a level
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.networks.door import PATTERNS, Pattern
from armillary.spec.machine import Level

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Joint:
    """One unit of a level: it joins `num_units` units of the level below, each of `unit_ranks`."""

    level: Level
    num_units: int
    unit_ranks: int

    @property
    def rank_bytes_per_s(self) -> float:
        """What a rank gets of it when every rank sends across it: the link's rate over the taper.

        Links of whole units are this times their ranks.
        """
        return self.level.link_bytes_per_s / self.level.taper


@dataclass(frozen=True, kw_only=True, slots=True)
class Trips:
    """Messages through one level: from unit to unit of the level below, each of shape [T].

    `unit` numbers the unit of the level, `source` and `target` the units of the level below within
    it, and `rank` the sending rank within its own. `offered` is the rate at which each could send
    if ports alone held it, for those who route by load. `pattern` is an index of `PATTERNS`.
    """

    unit: Index
    source: Index
    target: Index
    rank: Index
    offered: Array
    pattern: Index
    seed: int = 0

    def are(self, pattern: Pattern) -> NDArray[np.bool_]:
        """Which of them are of `pattern`."""
        return np.asarray(self.pattern == PATTERNS.index(pattern))


@dataclass(frozen=True, kw_only=True, slots=True)
class Ways:
    """Links that trips take: `trip` takes of `link` of its unit the share `share` of its rate.

    Where many trips go the same ways, `trip` numbers these ways and `bundle`, of shape [T], says
    which each trip goes.
    """

    trip: Index
    link: Index
    share: Array
    bundle: Index | None = None


def no_ways() -> Ways:
    """The ways of trips that only their ranks' ports hold up."""
    none = np.zeros(0, np.int64)
    return Ways(trip=none, link=none, share=np.zeros(0))
