"""From coarse to fine: which rows are worth pricing with every choice, where there are too many.

Rows are told apart in groups: the same degrees of all that cuts the model, and as many ranks that
split the batch, whatever part of these holds shards. A few of a group are priced with a few
choices; the groups with the fastest and the smallest are priced whole, and the best rows with every
choice.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.plan.grid import Column
from armillary.plan.rows import Degrees, product
from armillary.plan.wish import Contenders

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Funnel:
    """How many go on from one look to the next, of those with the most devices.

    Of each halving of the devices further down half as many do, but `fewest`. `groups` are priced
    with all ways to hold shards, `rows` with every choice, and `places` with every placement.
    `small_groups` are looked at at all of those with less than half of the devices.
    """

    groups: int = 48
    rows: int = 24
    places: int = 16
    fewest: int = 4
    small_groups: int = 320

    @classmethod
    def wide(cls) -> Self:
        """Many times as many of all."""
        return cls(groups=384, rows=192, places=48, fewest=24, small_groups=4096)


def replicas_and_shards() -> tuple[str, str]:
    """The outermost and the innermost of the axes that split the batch, between which its ranks
    may be dealt without cutting the model otherwise.
    """
    batch = [axis for axis in discover().values() if axis.splits_batch]
    batch.sort(key=lambda axis: axis.order)
    return batch[0].name, batch[-1].name


def group_of(degrees: Degrees) -> Index:
    """The group of every row, by number."""
    ends = replicas_and_shards()
    columns = [column for name, column in degrees.items() if name not in ends]
    columns.append(product({name: degrees[name] for name in ends}))
    number = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        found, index = np.unique(column, return_inverse=True)
        number = np.unique(number * len(found) + index, return_inverse=True)[1]
    return number


def halvings(num_devices: NDArray[np.int64], most: int) -> Index:
    """How often `most` is halved down to each number of devices, in halves of a halving."""
    return np.floor(2.0 * np.log2(most / num_devices)).astype(np.int64)


def first_look(degrees: Degrees, held: Column, group: Index, funnel: Funnel) -> Index:
    """Rows to price first: of each group the one that holds most of the model, and the least.

    Of groups with less than half of the devices only those that cut the model least.
    """
    devices = product(degrees)
    most = int(devices.max())
    cuts = product({n: degrees[n] for n, axis in discover().items() if not axis.splits_batch})
    ends = np.concatenate([_first_of(group, held), _first_of(group, -held)])
    ends = np.unique(ends)
    halving = halvings(devices[ends], most)
    kept = [ends[halving < 2]]
    for one in np.unique(halving[halving >= 2]):
        inside = ends[halving == one]
        kept.append(inside[np.argsort(cuts[inside], kind="stable")][: 2 * funnel.small_groups])
    return np.concatenate(kept)


def _first_of(group: Index, key: Column) -> Index:
    """Of each group the row with the least key."""
    order = np.lexsort((key, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return order[starts]


def best_groups(seen: Contenders, group: Index, funnel: Funnel) -> Index:
    """The rows of the groups with the fastest and the smallest contenders."""
    chosen = _best(seen, group[seen.row], funnel.groups, funnel.fewest)
    return np.flatnonzero(np.isin(group, chosen))


def best_rows(seen: Contenders, number: int, fewest: int) -> Index:
    """The rows of the fastest and the smallest contenders."""
    return _best(seen, seen.row, number, fewest)


def may_be_among(bounds: Contenders, best: Contenders, funnel: Funnel) -> Index:
    """Rows not among `best` that might be: those of a bound below the last of their halving.

    The last is that of the `funnel.rows` best of the most devices, of half as many of each
    halving further down.
    """
    most = int(bounds.num_devices.max())
    halving, of_best = halvings(bounds.num_devices, most), halvings(best.num_devices, most)
    kept = []
    for one in np.unique(halving):
        step_s = np.sort(best.step_s[of_best == one])
        last = min(max(funnel.fewest, funnel.rows >> int(one)), len(step_s)) - 1
        worst_s = step_s[last] if len(step_s) else np.inf
        kept.append(bounds.row[(halving == one) & (bounds.step_s < worst_s)])
    return np.setdiff1d(np.concatenate(kept), best.row)


def _best(seen: Contenders, label: Index, number: int, fewest: int) -> Index:
    """The labels of the best contenders of each halving of the devices, without repeats."""
    halving = halvings(seen.num_devices, int(seen.num_devices.max()))
    kept = []
    for one in np.unique(halving):
        inside = np.flatnonzero(halving == one)
        most = max(fewest, number >> int(one))
        for key, share in ((seen.step_s, 1.0), (seen.memory_bytes, 0.25)):
            ordered = label[inside[np.argsort(key[inside], kind="stable")]]
            firsts = np.sort(np.unique(ordered, return_index=True)[1])
            kept.append(ordered[firsts[: max(1, int(most * share))]])
    return np.unique(np.concatenate(kept))
