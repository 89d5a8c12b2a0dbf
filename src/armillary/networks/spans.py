"""Where the ranks of a group lie: how many units of each level a group touches."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from armillary.spec.machine import Level

Array = NDArray[np.float64]
Span = tuple[ArrayLike, ArrayLike]
Column = NDArray[np.int64]


def group_sizes(axes: Sequence[tuple[Column, Column]], num_rows: int) -> Array:
    """The ranks of a group: the product of its axes' degrees."""
    ranks = np.ones(num_rows)
    for degree, _ in axes:
        ranks = ranks * degree
    return ranks


def units_touched(
    levels: Sequence[Level], axes: Sequence[tuple[Column, Column]], num_rows: int
) -> list[Array]:
    """How many units of each of `levels` the group with the most of them touches.

    Groups lie along an axis of degree d and stride s in blocks of d s ranks, one block after the
    other from rank 0. A block starts in a unit of n ranks at a multiple of gcd(n, d s), so the one
    that is cut most touches (d s - 1 - gcd) // n + 2 units, and no group touches more than it has
    members. Where n and d s divide each other that is d s / n, or 1; elsewhere some groups fare
    better, but a step waits for the worst. Axes multiply, once those that continue each other
    (a stride that is the next inner axis' degree times stride) are taken as one.
    """
    touched: list[Array] = []
    for level in levels[:-1]:
        units, is_odd = _units(axes, level.num_ranks, num_rows)
        rows = np.flatnonzero(is_odd)
        if rows.size:
            some = _joined([(degree[rows], stride[rows]) for degree, stride in axes])
            units[rows] = _units(some, level.num_ranks, rows.size)[0]
        if touched:  # a unit holds whole units of the level below
            units = np.minimum(units, touched[-1])
        touched.append(units)
    return [*touched, np.ones(num_rows)] if levels else []


def _units(
    axes: Sequence[tuple[Column, Column]], unit: int, num_rows: int
) -> tuple[Array, NDArray[np.bool_]]:
    """The most units of `unit` ranks that a group touches, and where they cut blocks unevenly."""
    units, is_odd = np.ones(num_rows), np.zeros(num_rows, np.bool_)
    for degree, stride in axes:
        length = degree * stride
        blocks = -(-length // unit)
        odd = (length % unit != 0) & (unit % length != 0) & (degree > 1)
        if odd.any():
            shared = np.gcd(length[odd], unit)
            blocks[odd] = (length[odd] - 1 - shared) // unit + 2
        units *= np.minimum(blocks, degree)
        is_odd |= odd
    return units, is_odd


def _joined(axes: Sequence[tuple[Column, Column]]) -> list[tuple[Column, Column]]:
    """The axes, of which one that continues another is taken into it and left with degree 1."""
    degrees, strides = [degree.copy() for degree, _ in axes], [stride for _, stride in axes]
    for _ in axes:  # a chain of three may need a second look
        for inner, outer in permutations(range(len(axes)), 2):
            goes_on = (degrees[inner] * strides[inner] == strides[outer]) & (degrees[outer] > 1)
            degrees[inner] = np.where(goes_on, degrees[inner] * degrees[outer], degrees[inner])
            degrees[outer] = np.where(goes_on, 1, degrees[outer])
    return list(zip(degrees, strides, strict=True))
