"""Collectives in closed form: how many steps an algorithm takes, and what a rank sends.

Every algorithm is two numbers as functions of the ranks n: the steps that follow each other, and
the bytes that one rank sends, as a share of S, the size of the whole tensor. With a step of
`step_s` seconds and a rate in bytes a second, the time is steps x `step_s` + sent S / rate
(Hockney, Parallel Computing 20, 1994). Ranks may be an array, and need not be whole numbers where
they stand for a mean. One rank takes no step and sends nothing.

S of an all-gather, a reduce-scatter and an all-to-all is the size over all ranks: of an all-to-all
each rank holds S / n and keeps 1 / n of that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

THAKUR = "Thakur, Rabenseifner, Gropp, Int. J. High Perform. Comput. Appl. 19 (2005) 49"


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """A collective done in one way: `steps` and `sent` (share of S) by number of ranks.

    `splits`: done inside nodes first, each rank goes on with its part of the tensor; else each, or
    one of them, goes on with all of it.
    """

    name: str
    steps: Callable[[Array], Array]
    sent: Callable[[Array], Array]
    source: str
    splits: bool = True

    def seconds(
        self, ranks: ArrayLike, size: ArrayLike, step_s: ArrayLike, bytes_per_s: ArrayLike
    ) -> Array:
        """Seconds of the collective over `ranks` of a tensor of `size` bytes in all."""
        n = np.asarray(ranks, np.float64)
        latency_s = self.steps(n) * np.asarray(step_s, np.float64)
        wire_s = self.sent(n) * np.asarray(size, np.float64) / np.asarray(bytes_per_s, np.float64)
        return np.asarray(latency_s + wire_s)


def around(n: Array) -> Array:
    """Steps of a message that goes once around a ring of `n`, back to the one before its start."""
    return n - 1.0


def doubling(n: Array) -> Array:
    """Rounds in which what a rank knows doubles until it knows of all `n`: ceil(log2 n)."""
    return np.ceil(np.log2(n) - 1e-9)


def others(n: Array) -> Array:
    """The share of S that a rank does not hold itself: (n - 1) / n."""
    return (n - 1.0) / n


def _twice(part: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda n: 2.0 * part(n)


def _is_group(n: Array) -> Array:
    return (n > 1).astype(np.float64)


RING_ALL_REDUCE = Algorithm(
    name="ring",
    steps=_twice(around),
    sent=_twice(others),
    source="Patarasuk, Yuan, J. Parallel Distrib. Comput. 69 (2009) 117, eq. 3",
)
RABENSEIFNER = Algorithm(
    name="halving and doubling", steps=_twice(doubling), sent=_twice(others), source=THAKUR
)
DOUBLING_ALL_REDUCE = Algorithm(
    name="recursive doubling", steps=doubling, sent=doubling, source=THAKUR, splits=False
)
DOUBLE_TREE = Algorithm(
    # Each rank is inside one tree and a leaf of the other; it passes on half of S up and down in
    # both, all ranks together 2 (n - 1) S.
    name="double binary tree",
    steps=_twice(doubling),
    sent=_twice(others),
    source="Sanders, Speck, Traeff, Parallel Computing 35 (2009) 581",
)
CHAIN_ALL_REDUCE = Algorithm(
    name="chain", steps=_twice(around), sent=_twice(others), source="a tree of degree 1"
)
RING = Algorithm(name="ring", steps=around, sent=others, source=THAKUR)
DOUBLING = Algorithm(name="recursive doubling", steps=doubling, sent=others, source=THAKUR)
BRUCK_ALL_GATHER = Algorithm(
    name="Bruck",
    steps=doubling,
    sent=others,
    source="Bruck et al., IEEE Trans. Parallel Distrib. Syst. 8 (1997) 1143",
)
PAIRWISE = Algorithm(name="pairwise", steps=around, sent=lambda n: others(n) / n, source=THAKUR)
BRUCK = Algorithm(
    name="Bruck",
    steps=doubling,
    sent=lambda n: doubling(n) / (2.0 * n),
    source="Bruck et al., IEEE Trans. Parallel Distrib. Syst. 8 (1997) 1143",
)
BINOMIAL = Algorithm(
    name="binomial tree", steps=doubling, sent=doubling, source=THAKUR, splits=False
)
SCATTER_GATHER = Algorithm(
    name="scatter and all-gather",
    steps=lambda n: doubling(n) + around(n),
    sent=_twice(others),
    source=THAKUR,
)
PIPELINED_CHAIN = Algorithm(
    name="pipelined chain", steps=around, sent=_is_group, source="a tree of degree 1"
)
PAIR = Algorithm(
    name="pair",
    steps=_is_group,
    sent=_is_group,
    source="Hockney, Parallel Computing 20 (1994) 389",
)
NEIGHBOURS = Algorithm(
    name="neighbours", steps=_is_group, sent=lambda n: _is_group(n) / n, source="one part of n"
)


def pipelined_s(latency_s: Array, wire_s: Array, pieces: ArrayLike = 1.0) -> Array:
    """Seconds of a message sent in pieces over hops of `latency_s` and `wire_s` in all.

    With p pieces the last arrives after (1 + p / h) of h hops; the best p gives
    (sqrt(latency) + sqrt(wire))^2, which is where the square root in measured times comes from.
    `pieces` is the share of that cross term which a library really pays.

    Source: Sanders, Speck, Traeff, Parallel Computing 35 (2009) 581, eq. 1 (h >> 1).
    """
    crossed = 2.0 * np.asarray(pieces, np.float64) * np.sqrt(latency_s * wire_s)
    return np.asarray(latency_s + wire_s + crossed)


# ------------------------------------------------------------------------------------------ LogGP
@dataclass(frozen=True, kw_only=True, slots=True)
class LogGP:
    """A network in four numbers, in any unit of time: latency, overhead, gap and gap a byte.

    Source: Alexandrov et al., SPAA 1995; `gap` bounds how often a rank sends and never binds where
    each rank sends once a round.
    """

    latency: int
    overhead: int
    gap: int
    gap_per_byte: int

    def message(self, size: int) -> int:
        """Time from the start of sending `size` bytes to their receipt: L + 2 o + (k - 1) G."""
        return self.latency + 2 * self.overhead + (size - 1) * self.gap_per_byte
