"""The door of a topology: what a rank gets through a level, by pattern of sending."""

from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from armillary.spec.machine import Level

if TYPE_CHECKING:
    from armillary.networks.joint import Joint, Trips, Ways

Array = NDArray[np.float64]
Index = NDArray[np.int64]

# gamma / (2 sqrt(start / B)) of the fits of NCCL inside a node: 0.3 to 1.05 over A100, H100 and
# B200, all collectives and groups; this is their mean (docs/networks.md).
PIECES_INSIDE = 0.65

# How the units of a level that a group spans send to each other, all ranks of the machine at once:
# "ring"  each to the next one;  "exchange"  each to partners near and far, in turn;
# "all"   each to every other evenly;  "pair"  one message to one other unit.
Pattern = Literal["ring", "exchange", "all", "pair"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)


class Network(Protocol):
    """One topology. A file in this room that defines `NETWORK` is found by discovery.

    `name` is what `Level.network` says. `fraction` is the share of a link's rate that messages
    reach, and `source` says who measured it. `step_factor` is how many times longer than elsewhere
    a step of the middleware takes here. `pieces` is the share of the cross term of pieces that is
    paid (`core.collectives.pipelined_s`). `through_adapters`: messages leave through network
    adapters, so that steps cost what they cost between nodes.

    The first two doors are closed forms, for many groups that do the same; the last three are for
    flows that share links. Besides the links of the topology each rank has a port into a level and
    one out of it, of `level.link_bytes_per_s`, on which every message counts. `is_spread`: a rank
    whose group is in several units sends to all of them at once, whatever the pattern.
    """

    name: str
    fraction: float
    source: str
    step_factor: float
    pieces: float
    through_adapters: bool
    is_spread: bool

    def bytes_per_s(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        """Bytes/s that one rank sends through `level` in `pattern`, before `fraction`.

        `num_units` are the units of the level below that the group spans, and `most_units` how
        many one unit of this level has. Never less where `level.link_bytes_per_s` is more.
        """
        ...

    def num_hops(
        self, level: Level, pattern: Pattern, num_units: Array, most_units: float
    ) -> Array:
        """How many times `level.latency_s` one step of `pattern` takes."""
        ...

    def capacities(self, joint: "Joint") -> Array:
        """Bytes/s of each link of one unit of the level, of shape [L], before `fraction`."""
        ...

    def ends(self, joint: "Joint") -> Index:
        """The units that each link goes from and to, of shape [L, 2]; from `num_units` on they are
        points within the topology, and -1 is what all units are on."""
        ...

    def ways(self, joint: "Joint", trips: "Trips") -> "Ways":
        """The links that each of `trips` takes."""
        ...

    def border(self, joint: "Joint", source: Index, is_outward: bool) -> Index:
        """The link of what leaves (or enters) the unit of the level from its unit `source`; -1 for
        none."""
        ...


# Doors that topologies have in common: each takes them as methods of its own.
def at_link_rate(
    network: Network, level: Level, pattern: Pattern, num_units: Array, most_units: float
) -> Array:
    """`bytes_per_s` where any pattern goes at the link's rate over the taper."""
    return np.full_like(num_units, level.link_bytes_per_s / level.taper)


def in_one_hop(
    network: Network, level: Level, pattern: Pattern, num_units: Array, most_units: float
) -> Array:
    """`num_hops` where every unit is as far from every other."""
    return np.ones_like(num_units)


def by_no_border(network: Network, joint: "Joint", source: Index, is_outward: bool) -> Index:
    """`border` where what leaves or enters a unit of the level crosses no link of it."""
    return np.full(source.shape, -1, np.int64)
