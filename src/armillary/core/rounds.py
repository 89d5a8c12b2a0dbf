"""Collectives expanded into rounds of messages, and folded to one rank where all are alike.

A round is who sends to whom and how much; a rank goes on to its next round when it has sent and
received in this one. What is alike may be folded: **if in every round each rank sends one message
and receives one, of the same size for all, every rank ends every round at the same time, and one
rank stands for all of them.** Ring, recursive doubling, halving and doubling, dissemination, Bruck
and pairwise exchange are of that kind (powers of two where partners are paired); trees are not, and
are played rank by rank.
"""

# Shapes: N ranks, R rounds
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.core.collectives import LogGP

Index = NDArray[np.int64]
Times = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Messages that start together: ranks `source` send `size` bytes each to ranks `target`."""

    source: Index
    target: Index
    size: Index


@dataclass(frozen=True, kw_only=True, slots=True)
class Expansion:
    """An algorithm as rounds: `expand` gives every message, `fold` the bytes of one rank's rounds.

    `fold` is none where ranks are not alike. Both take the ranks and the size of the whole tensor.
    """

    name: str
    expand: Callable[[int, int], Iterator[Round]]
    fold: Callable[[int, int], Index] | None
    needs_power_of_two: bool = False


def _alike(partner: Callable[[Index, int], Index], sizes: Callable[[int, int], Index]) -> Expansion:
    """An expansion in which every rank sends to its `partner` in each round of `sizes`."""

    def expand(ranks: int, size: int) -> Iterator[Round]:
        every = np.arange(ranks)
        for number, part in enumerate(sizes(ranks, size)):
            yield Round(
                source=every, target=partner(every, number) % ranks, size=np.full(ranks, part)
            )

    return Expansion(name="", expand=expand, fold=sizes)


def _named(name: str, one: Expansion, needs_power_of_two: bool = False) -> Expansion:
    return Expansion(
        name=name, expand=one.expand, fold=one.fold, needs_power_of_two=needs_power_of_two
    )


def num_doublings(ranks: int) -> int:
    """Rounds until what one rank knows has reached all: ceil(log2 ranks)."""
    return max(ranks - 1, 0).bit_length()


def _same(rounds: int, part: int) -> Index:
    return np.full(rounds, part, np.int64)


def _halves(ranks: int, size: int) -> Index:
    return size >> np.arange(1, num_doublings(ranks) + 1)


def _next(every: Index, number: int) -> Index:
    return every + 1


def _xor(every: Index, number: int) -> Index:
    return every ^ (1 << number)


def _there_and_back(ranks: int) -> Callable[[Index, int], Index]:
    rounds = num_doublings(ranks)
    return lambda every, number: every ^ (1 << min(number, 2 * rounds - 1 - number))


def _halving_and_doubling(ranks: int, size: int) -> Iterator[Round]:
    found = _alike(_there_and_back(ranks), _there_and_back_sizes)
    return found.expand(ranks, size)


def _there_and_back_sizes(ranks: int, size: int) -> Index:
    half = _halves(ranks, size)
    return np.concatenate([half, half[::-1]])


def _bruck_sizes(ranks: int, size: int) -> Index:
    """Of blocks of size / ranks^2 those whose distance has the bit of the round set."""
    block = size // (ranks * ranks)
    distance = np.arange(ranks)
    counts = [(distance >> bit & 1).sum() for bit in range(num_doublings(ranks))]
    return block * np.array(counts, np.int64)


def _gather_sizes(ranks: int, size: int) -> Index:
    """Blocks of size / ranks: as many as are known, and no more than are missing."""
    rounds = np.arange(num_doublings(ranks))
    known = np.int64(1) << rounds
    return (size // ranks) * np.minimum(known, ranks - known)


def _binomial(ranks: int, size: int) -> Iterator[Round]:
    """Rank 0 to all: who knows sends half as far as before."""
    for number in reversed(range(num_doublings(ranks))):
        step = 1 << number
        source = np.arange(0, ranks - step, 2 * step)
        yield Round(source=source, target=source + step, size=np.full(source.size, size))


def _binomial_all_reduce(ranks: int, size: int) -> Iterator[Round]:
    """All to rank 0 and back: the tree of the broadcast, first upwards."""
    down = list(_binomial(ranks, size))
    for one in reversed(down):
        yield Round(source=one.target, target=one.source, size=one.size)
    yield from down


RING_ALL_REDUCE = _named("ring", _alike(_next, lambda n, s: _same(2 * (n - 1), s // n)))
RING_GATHER = _named("ring all-gather", _alike(_next, lambda n, s: _same(n - 1, s // n)))
DOUBLING_ALL_REDUCE = _named(
    "recursive doubling", _alike(_xor, lambda n, s: _same(num_doublings(n), s)), True
)
RABENSEIFNER = Expansion(
    name="halving and doubling",
    expand=_halving_and_doubling,
    fold=_there_and_back_sizes,
    needs_power_of_two=True,
)
DISSEMINATION = _named(
    "dissemination",
    _alike(lambda every, k: every + (1 << k), lambda n, s: _same(num_doublings(n), s)),
)
BRUCK_GATHER = _named("Bruck all-gather", _alike(lambda every, k: every + (1 << k), _gather_sizes))
BRUCK = _named("Bruck all-to-all", _alike(lambda every, k: every + (1 << k), _bruck_sizes))
PAIRWISE = _named(
    "pairwise all-to-all",
    _alike(lambda every, k: every + k + 1, lambda n, s: _same(n - 1, s // (n * n))),
)
BINOMIAL = Expansion(name="binomial tree", expand=_binomial, fold=None)
TREE_ALL_REDUCE = Expansion(name="binomial all-reduce", expand=_binomial_all_reduce, fold=None)
EXPANSIONS = (
    RING_ALL_REDUCE,
    RING_GATHER,
    DOUBLING_ALL_REDUCE,
    RABENSEIFNER,
    DISSEMINATION,
    BRUCK_GATHER,
    BRUCK,
    PAIRWISE,
    BINOMIAL,
    TREE_ALL_REDUCE,
)


def hierarchical(inner: int, outer: int, size: int) -> Iterator[Round]:
    """An all-reduce over `outer` units of `inner` ranks: ring inside, ring of each place, ring."""
    num, part = inner * outer, size // inner
    every = np.arange(num)
    inside = every // inner * inner + (every + 1) % inner
    for _ in range(inner - 1):
        yield Round(source=every, target=inside, size=np.full(num, part))
    for _ in range(2 * (outer - 1)):
        target = (every + inner) % num
        yield Round(source=every, target=target, size=np.full(num, part // outer))
    for _ in range(inner - 1):
        yield Round(source=every, target=inside, size=np.full(num, part))


def folded_time(network: LogGP, one: Expansion, ranks: int, size: int) -> int:
    """Time of a collective whose ranks are all alike, from the rounds of one of them.

    In the units of `network`, and exact: L + 2 o + (k - 1) G a round of k bytes.

    Raises: `ValueError` where ranks are not alike.
    """
    if one.fold is None or (one.needs_power_of_two and ranks & (ranks - 1)):
        raise ValueError(f"{one.name} over {ranks} ranks has ranks that are not alike")
    if ranks < 2:
        return 0
    sizes = one.fold(ranks, size)
    per_round = network.latency + 2 * network.overhead
    extra = int(np.maximum(sizes - 1, 0).sum()) * network.gap_per_byte
    return int(sizes.size * per_round + extra)


def expanded_time(network: LogGP, rounds: Iterator[Round] | Sequence[Round], ranks: int) -> int:
    """Time of the last rank, played message by message: any algorithm, any sizes.

    A rank sends when its round before is over: the message is gone after o + (k - 1) G and is
    received L + o later. Of several messages to or from one rank in one round the latest counts.
    """
    clock: Times = np.zeros(ranks, np.int64)
    for one in rounds:
        gone = clock[one.source] + network.overhead
        gone = gone + np.maximum(one.size - 1, 0) * network.gap_per_byte
        there = gone + network.latency + network.overhead
        after = clock.copy()
        np.maximum.at(after, one.source, gone)
        received = np.maximum(there, clock[one.target] + network.overhead)
        np.maximum.at(after, one.target, received)
        clock = after
    return int(clock.max(initial=0))
