"""Groups of ranks as columns, those that lie alike told once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from armillary.networks.spans import Column, Span

SPREADING = np.uint64(0x9E3779B97F4A7C15)
"""An odd number near 2^64 by the golden ratio, whose multiples spread evenly (Knuth, TAOCP 6.4)."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of `shape`, of which each is as one of the distinct ones: that at its `place`.

    `axes` are degree and stride of every axis by distinct group, the outermost first.
    """

    shape: tuple[int, ...]
    place: NDArray[np.int64]
    axes: tuple[tuple[Column, Column], ...]
    num_distinct: int

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Self:
        """The groups over `spans`, the degree and the stride in ranks of each axis."""
        columns = [np.asarray(column, np.int64) for span in spans for column in span]
        shape = np.broadcast_shapes(*(column.shape for column in columns))
        flat = [np.broadcast_to(column, shape).reshape(-1) for column in columns]
        first, place = distinct(flat) if flat else (np.zeros(1, np.int64), np.zeros(1, np.int64))
        few = [column[first] for column in flat]
        axes = tuple(zip(few[::2], few[1::2], strict=True))
        return cls(shape, place.reshape(shape), axes, len(first))


def distinct(columns: Sequence[Column]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the distinct rows of some columns first stand, and which of them every row is.

    Rows are told apart by a sum that is seldom the same for two, and looked at if it might be.
    """
    mark = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        mark += column.astype(np.uint64)
        mark *= SPREADING
        mark ^= mark >> np.uint64(29)
    _, first, place = np.unique(mark, return_index=True, return_inverse=True)
    place = place.reshape(-1)
    if all(np.array_equal(column[first][place], column) for column in columns):
        return first, place
    _, first, place = np.unique(np.stack(columns), axis=1, return_index=True, return_inverse=True)
    return first, place.reshape(-1)
