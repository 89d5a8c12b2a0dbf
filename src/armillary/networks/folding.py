"""Which groups stand for others that are just like them, so that few of them need to be played.

An island is what adapters join: a node, or a rack of one switch. Two rules, each of which needs
that no burst breaks it, for then messages inside islands and between them share no link:

- **Islands that hold the same groups of every burst, place by place, are alike**, if each group
  lies inside one island: one island is played, and its times are those of the others.
- **Places of an island are alike**, if each group has one rank an island, always at the same place,
  and every burst joins the same islands at every place: one place is played. Its ports carry its
  own messages, and the links that all places share carry those of all.
"""

# Shapes: G groups of one burst, N ranks of a group, I islands
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """For each group of a burst the one that is played for it, and how many places one plays for.

    `stand_in` is of shape [G]; a group that stands for itself is played.
    """

    stand_in: Index
    num_places: int = 1

    @property
    def played(self) -> Index:
        """The groups that are played."""
        return np.unique(self.stand_in)


def unfolded(num_groups: int) -> Fold:
    """Every group is played."""
    return Fold(stand_in=np.arange(num_groups))


def folds(bursts: Sequence[Index], island: int) -> list[Fold]:
    """How each of `bursts`, ranks of the machine of shape [G, N], folds over islands of so many."""
    every = [unfolded(len(one)) for one in bursts]
    if island < 2:
        return every
    inside = [number for number, one in enumerate(bursts) if _is_inside(one, island)]
    between = [number for number in range(len(bursts)) if number not in inside]
    if not all(_is_apart(bursts[number], island) for number in between):
        return every
    for numbers, fold in ((inside, _islands_alike), (between, _places_alike)):
        found = fold([bursts[number] for number in numbers], island) if numbers else []
        for number, one in zip(numbers, found, strict=False):
            every[number] = one
    return every


def _is_inside(members: Index, island: int) -> bool:
    """Whether each group lies in one island."""
    at = members // island
    return bool((at == at[:, :1]).all())


def _is_apart(members: Index, island: int) -> bool:
    """Whether each group has one rank an island, at one place of all of them."""
    at, place = np.sort(members // island, axis=1), members % island
    return bool((np.diff(at, axis=1) > 0).all() and (place == place[:, :1]).all())


def _islands_alike(bursts: Sequence[Index], island: int) -> list[Fold]:
    """The groups of the first island of each kind stand for those of the others."""
    marks, orders, first = [], [], None
    for members in bursts:
        at = members[:, 0] // island
        order = np.lexsort((members[:, 0] % island, at))
        islands, counts = np.unique(at, return_counts=True)
        if (counts != counts[0]).any() or (first is not None and not _same(islands, first)):
            return []
        first = islands
        marks.append((members[order] % island).reshape(islands.size, -1))
        orders.append(order.reshape(islands.size, -1))
    _, chosen, kind = np.unique(
        np.concatenate(marks, axis=1), axis=0, return_index=True, return_inverse=True
    )
    found = []
    for order in orders:
        stand_in = np.empty(order.size, np.int64)
        stand_in[order.reshape(-1)] = order[chosen[kind.reshape(-1)]].reshape(-1)
        found.append(Fold(stand_in=stand_in))
    return found


def _places_alike(bursts: Sequence[Index], island: int) -> list[Fold]:
    """The groups of the first place stand for those of the others."""
    found, places = [], None
    for members in bursts:
        place, at = members[:, 0] % island, members // island
        here = np.unique(place)
        order = np.lexsort((*at.T[::-1], place))
        if members.shape[0] % here.size or (places is not None and not _same(here, places)):
            return []
        places = here
        tables = at[order].reshape(here.size, -1, members.shape[1])
        rows = place[order].reshape(here.size, -1)
        if (tables != tables[:1]).any() or (rows != rows[:, :1]).any():
            return []
        stand_in = np.empty(members.shape[0], np.int64)
        stand_in[order] = np.tile(order.reshape(here.size, -1)[0], here.size)
        found.append(Fold(stand_in=stand_in, num_places=here.size))
    return found


def _same(one: Index, other: Index) -> bool:
    return one.size == other.size and bool((one == other).all())
