"""Ways of dragonfly traffic by third units, and how much of it goes so when loads even out."""

# Shapes: P pairs of units, E ways by a third unit, K units
import numpy as np
from numpy.typing import NDArray

from armillary.networks.joint import Ways

Array = NDArray[np.float64]
Index = NDArray[np.int64]

ROUNDS = 24  # each halves what is left to even out
LEAST_SPARE = 0.02  # a full link still gets a fiftieth of what an empty one does


def adaptive_ways(pairs: Index, offered: Array, num_units: int, seed: int, all_long: bool) -> Ways:
    """The links that pairs of units take, whose load evens out; a row for each pair.

    `pairs` numbers (unit above, from, to) with `num_units` in each, links are numbered (from, to),
    and `offered` is what each pair would send, in units of one link's rate. A pair leaves the short
    way where its link is overfull and as far as the ways by third units, two links each, are less
    full: routing by the lengths of queues, in balance (UGAL). It goes by as many third units as it
    would fill links four times over, those with more to spare sooner. `all_long`: nothing goes the
    short way (Valiant).

    Source: Kim, Dally, Scott, Abts, ISCA 2008, section 4.
    """
    k = num_units
    link = pairs % (k * k)
    is_long = offered > 1.0 if not all_long else np.ones(pairs.size, np.bool_)
    short = np.zeros(pairs.size) if all_long else np.ones(pairs.size)
    rows = np.flatnonzero(is_long)
    if not rows.size:
        every = np.arange(pairs.size)
        return Ways(trip=every, link=link, share=short)
    row, third, part = _third_units(pairs, offered, rows, k, seed)
    order = np.argsort(row, kind="stable")
    row, third, part = row[order], third[order], part[order]
    base = pairs // (k * k) * (k * k)
    out = base[row] + pairs[row] // k % k * k + third
    into = base[row] + third * k + pairs[row] % k
    short, part = _even(pairs, offered, (row, out, into, part), rows, short)
    direct = np.flatnonzero(short > 0)
    share = (1.0 - short[row]) * part
    goes = share > 0
    row, out, into, share = row[goes], out[goes], into[goes], share[goes]
    return Ways(
        trip=np.concatenate([direct, row, row]),
        link=np.concatenate([link[direct], out % (k * k), into % (k * k)]),
        share=np.concatenate([short[direct], share, share]),
    )


def _third_units(
    pairs: Index, offered: Array, rows: Index, k: int, seed: int
) -> tuple[Index, Index, Array]:
    """Third units for each of `rows` with their parts, by what their two links have to spare.

    Pairs that need a quarter of the units or more go by all of them, others by some evenly drawn.
    """
    load = np.bincount(pairs, offered, (int(pairs.max()) // (k * k) + 1) * k * k)
    spare = np.maximum(1.0 - load, LEAST_SPARE).reshape(-1, k, k)
    above, source, target = pairs[rows] // (k * k), pairs[rows] // k % k, pairs[rows] % k
    into = np.ascontiguousarray(spare.transpose(0, 2, 1))
    weight = np.minimum(spare[above, source], into[above, target])
    every = np.arange(rows.size)
    weight[every, source] = weight[every, target] = 0.0
    weight /= weight.sum(axis=1, keepdims=True)
    num = np.maximum(np.ceil(4.0 * offered[rows]), 4).astype(np.int64)
    is_all = 4 * num > k - 2
    few = np.flatnonzero(~is_all)
    of_all = weight if not few.size else weight[is_all]
    at, third = np.nonzero(of_all)
    part, at = of_all[at, third], rows[is_all][at]
    if not few.size:
        return at, third, part
    # Evenly spaced draws from the weights laid end to end, all pairs in one line.
    line = (np.cumsum(weight[few], axis=1) + np.arange(few.size)[:, None]).reshape(-1)
    num = num[few]
    nth = np.arange(num.sum()) - np.repeat(np.cumsum(num) - num, num)
    # Multiples of the golden ratio start pairs at places far from each other.
    begin = ((pairs[rows[few]] + seed * 7919) * 0.6180339887498949) % 1.0
    which = np.repeat(np.arange(few.size), num)
    drawn = np.minimum((nth + begin[which]) / num[which], 1.0 - 1e-9)
    some = np.searchsorted(line, which + drawn, side="right") % k
    return (
        np.concatenate([at, rows[few[which]]]),
        np.concatenate([third, some]),
        np.concatenate([part, 1.0 / num[which]]),
    )


def _even(
    pairs: Index,
    offered: Array,
    ways: tuple[Index, Index, Index, Array],
    rows: Index,
    short: Array,
) -> tuple[Array, Array]:
    """The part of each pair that goes the short way and of each long one, evened out by load."""
    row, out, into, part = ways
    is_fixed = not short.any()
    size = int(max(out.max(), into.max(), pairs.max())) + 1
    always = np.asarray(np.bincount(pairs, offered, size), np.float64)
    always[pairs[rows]] = 0.0
    at, sent = pairs[rows], offered[rows]
    first = np.flatnonzero(np.diff(row, prepend=-1))  # of each of `rows`, which are all in `row`
    each = np.diff(first, append=row.size)
    for _ in range(ROUNDS):
        long = np.repeat((1.0 - short[rows]) * sent, each) * part
        load: Array = always + np.bincount(out, long, size) + np.bincount(into, long, size)
        load[at] += short[rows] * sent
        root = np.sqrt(np.maximum(load, 1e-3))
        fuller = np.maximum(root[out], root[into])
        if not is_fixed:
            direct, mean = load[at], np.add.reduceat(fuller * fuller * part, first)
            gap = 0.5 * (direct - np.where(direct > 1.0, np.maximum(mean, 1.0), 1.0))
        # A way is taken less by the root of how full it is, beside the others of its pair.
        part = part / fuller
        part *= np.repeat(1.0 / np.add.reduceat(part, first), each)
        if not is_fixed:
            short[rows] = np.clip(short[rows] - gap / sent, 0.0, 1.0)
    return short, part
