"""What the axes send in a step, over a grid: `traffic` on as few layouts as it depends on."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from armillary.axes import Axis, Transfer
from armillary.plan.grid import DIMS, Column, Grid
from armillary.spec import ModelGraph
from armillary.spec.layouts import Layouts

DIM_OF = {
    "num_samples": "micro_batch_size",
    "num_micro_batches": "micro_batch_size",
    "pipeline.schedule": "schedule",
    "pipeline.stages_per_rank": "schedule",
    "recompute": "recompute",
    "sharded.zero": "zero",
    "tensor.norms": "region",
    "tensor.loss": "region",
    "sequence.attention": "attention",
}
"""The dim of a grid along which each column of a table of layouts differs, beside the degrees."""

SAMPLED = 16
"""Rows that are looked at before all are, where values are likely to differ."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A transfer, its bytes, how often in a step, beside how many micro batches; all broadcast.

    It stands for all those of its axis that are alike.
    """

    transfer: Transfer
    bytes: Column
    per_step: Column
    rounds: Column


class Watched:
    """A table of layouts that notes which of its columns are read."""

    def __init__(self, table: Layouts) -> None:
        self._table = table
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.read |= set(DIM_OF) if name == "options" else {name}
        return getattr(self._table, name)

    def option(self, name: str, default: str) -> NDArray[np.str_]:
        """The option `name` in every row, as `Layouts.option`."""
        self.read.add(name)
        return self._table.option(name, default)


def sent_along(
    axis: Axis,
    graph: ModelGraph,
    grid: Grid,
    batch: int,
    reads: dict[str, set[str]] | None = None,
) -> Iterator[Sent]:
    """The transfers of an axis, those that are alike as one, on as few dims as each depends on.

    `graph` is folded. Where ranks lie is nothing to what they send, so rows of equal degrees are
    asked about once. `reads` are by axis the dims that it was seen to read; more are found out.
    """
    few, of_row = grid.without_orders
    told, shape = _tell(axis, graph, few, batch, {} if reads is None else reads)
    alike: dict[Any, list[Sent]] = defaultdict(list)
    for one in told:
        if one.per_step.any():
            count = one.per_step * float(graph.times(one.path))
            rounds = np.asarray(one.rounds, dtype=np.float64)
            found = Sent(one, *(_narrow(values, shape) for values in (one.bytes, count, rounds)))
            size = found.bytes
            where = (one.collective, one.group, one.hidden_behind, one.carries, one.is_wide)
            key = (where, size.shape, size.tobytes(), found.rounds.tobytes())
            alike[key].append(found)
    for members in alike.values():
        count = sum((one.per_step for one in members[1:]), members[0].per_step)
        yield replace(
            members[0],
            bytes=_rows(members[0].bytes, of_row),
            per_step=_rows(count, of_row),
            rounds=_rows(members[0].rounds, of_row),
        )


def _tell(
    axis: Axis, graph: ModelGraph, grid: Grid, batch: int, reads: dict[str, set[str]]
) -> tuple[list[Transfer], tuple[int, ...]]:
    """What `axis` tells of a table along the dims whose columns it reads, and the table's shape.

    Those are found by asking: along a dim that was not read all layouts are told the same.
    """
    dims = reads.setdefault(axis.name, {"degrees"})
    while True:
        table, shape = grid.table([d for d in DIMS if d in dims], batch)
        watched = Watched(table)
        told = axis.traffic(graph, cast(Layouts, watched))
        read = {DIM_OF[name] for name in watched.read if name in DIM_OF}
        missing = {d for d in read - dims if grid.shape[DIMS.index(d)] > 1}
        if not missing:
            return list(told), shape
        dims |= missing


def _narrow(values: NDArray[Any], shape: tuple[int, ...]) -> Column:
    """`values` of a table of this shape, with one entry along every dim that they are equal along.

    The rows stay.
    """
    size = prod(shape)
    found = (values if values.size == size else np.broadcast_to(values, size)).reshape(shape)
    for dim in range(1, len(shape)):
        if shape[dim] > 1:
            first = found.take([0], axis=dim)
            few = slice(None, None, max(1, shape[0] // SAMPLED))
            if (found[few] == first[few]).all() and (found == first).all():
                found = first
    return np.asarray(found, dtype=np.float64)


def _rows(values: Column, of_row: NDArray[np.int64] | None) -> Column:
    return values if of_row is None or values.shape[0] == 1 else values[of_row]
