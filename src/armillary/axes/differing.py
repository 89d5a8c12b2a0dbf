"""Which ranks along an axis do other things than the rest: found from the graph and the layout.

An axis may say so itself, by a method `differs(graph, layout)` that gives its classes of
coordinates; along any other axis all ranks do the same. FSDP2 cuts the rows of every parameter into
equal pieces, rounded up, so along the axis that holds shards the last ranks may hold less.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from armillary.axes import discover
from armillary.axes.reduction import SHARDS
from armillary.axes.regions.messages import is_cut
from armillary.spec import Layout, ModelGraph


@dataclass(frozen=True, kw_only=True, slots=True)
class Class:
    """Coordinates along an axis that do the same: the first of them, how many, and what it is."""

    coordinate: int
    count: int
    reason: str = ""


def classes(
    name: str, graph: ModelGraph, layout: Layout, shapes: Mapping[str, Sequence[int]]
) -> Sequence[Class]:
    """The classes of the coordinates along axis `name`; their counts add up to its degree.

    `shapes` are those of the model's parameters by path.
    """
    if (differs := getattr(discover()[name], "differs", None)) is not None:
        found: Sequence[Class] = differs(graph, layout)
        return found
    if name == SHARDS:
        return uneven_shards(layout.degree(name), _rows(graph, layout, shapes))
    return [Class(coordinate=0, count=layout.degree(name))]


def _rows(graph: ModelGraph, layout: Layout, shapes: Mapping[str, Sequence[int]]) -> Iterator[int]:
    """The rows of every parameter that a rank has before they are sharded."""
    degree = layout.degree("tensor")
    cut = {s.path for s in graph.splits if s.dim == 0 and is_cut(s, np.array([degree]))[0]}
    for path, shape in shapes.items():
        if shape:
            yield shape[0] // degree if path in cut else shape[0]


def uneven_shards(degree: int, num_rows: Iterable[int]) -> Sequence[Class]:
    """The coordinates that hold equally many rows of every parameter.

    Example:
        >>> [(c.coordinate, c.count) for c in uneven_shards(4, [8, 6])]
        [(0, 3), (3, 1)]
    """
    bounds = {0, degree}
    for rows in num_rows:
        piece = -(-rows // degree)
        bounds |= {rows // piece, -(-rows // piece)} if piece else set()
    ordered = sorted(bounds)
    return [
        Class(
            coordinate=start,
            count=stop - start,
            reason="" if not start else "fewer rows of uneven shards",
        )
        for start, stop in pairwise(ordered)
    ]
