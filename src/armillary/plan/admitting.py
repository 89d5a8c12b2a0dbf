"""Which choices the axes refuse beside which degrees: asked one dim of a grid at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.plan.choices import OPTIONS, Choices
from armillary.plan.grid import DIMS, Grid
from armillary.plan.rows import Degrees, Refusals, length
from armillary.plan.traffic import Watched
from armillary.spec import Layout, ModelGraph
from armillary.spec.layouts import Layouts

Mask = NDArray[np.bool_]
SEVERAL = 2
"""Micro batches of a step that has more than one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """By dim of the grid, which of its choices each row admits: [rows, choices].

    Where the dim has one choice for all rows it is left out. `one_micro_batch` marks the rows that
    take their samples in one micro batch only.
    """

    by_dim: Mapping[str, Mask]
    one_micro_batch: Mask

    def refused(self, grid: Grid, rows: NDArray[np.int64], batch: int) -> Mask | None:
        """The layouts of a grid of these rows that an axis refuses, broadcast; None if none is."""
        found: Mask | None = None
        for dim, mask in self.by_dim.items():
            here = ~mask[rows][:, : grid.shape[DIMS.index(dim)]]
            if here.any():
                shape = [1] * len(DIMS)
                shape[0], shape[DIMS.index(dim)] = here.shape
                here = here.reshape(shape)
                found = here if found is None else found | here
        if self.one_micro_batch[rows].any():
            samples: NDArray[np.int64] = np.ones(1, dtype=np.int64)
            for name, axis in discover().items():
                samples = samples * (grid.degree(name) if axis.splits_batch else 1)
            several = grid.along("micro_batch_size", grid.micro_batch_sizes) * samples < batch
            here = grid.along("degrees", self.one_micro_batch[rows]) & several
            found = here if found is None else found | here
        return found


def admit_choices(
    graph: ModelGraph,
    degrees: Degrees,
    order: NDArray[np.int64],
    choices: Choices,
    refusals: Refusals,
) -> tuple[Mask, Admitted]:
    """Which rows admit their placement, and which choices each row admits.

    Rows are admitted with the first choice of everything. A choice is asked for alone: no axis
    refuses two together that it admits one by one. Axes that read nothing of a choice as they
    admit rows are not asked about it.
    """
    reads: dict[str, set[str]] = {}
    num_rows = length(degrees)
    table = Layouts(
        num_layouts=num_rows,
        degrees=degrees,
        options={},
        num_samples=np.ones(num_rows, dtype=np.int64),
        num_micro_batches=np.ones(num_rows, dtype=np.int64),
    )
    kept = np.ones(num_rows, dtype=bool)
    for index, names in enumerate(choices.orders):
        rows = np.flatnonzero(order == index)
        if len(rows):
            placed = replace(_rows(table, rows), order=names)
            kept[rows] = ~_refused(graph, placed, refusals, discover(), reads)
    by_dim = {}
    for dim, values in _asked(choices):
        mask = np.ones((num_rows, len(values)), dtype=bool)
        options = set(OPTIONS.get(dim, (dim,)))
        readers = [axis for axis, read in reads.items() if read & options]
        for place, said in enumerate(values if readers else ()):
            mask[:, place] = ~_refused(graph, said(table), refusals, readers, reads)
        if not mask.all():
            by_dim[dim] = mask
    several = replace(table, num_micro_batches=np.full(num_rows, SEVERAL, dtype=np.int64))
    one_micro_batch = _refused(graph, several, refusals, discover(), reads)
    return kept, Admitted(by_dim=by_dim, one_micro_batch=one_micro_batch)


Said = Callable[[Layouts], Layouts]


def _asked(choices: Choices) -> Iterator[tuple[str, list[Said]]]:
    """Every dim that an axis is asked about, and by choice a table that says it."""
    for dim, names in OPTIONS.items():
        values = getattr(choices, f"{dim}s")
        yield dim, [_with_options(names, (v,) if isinstance(v, str) else v) for v in values]
    yield "recompute", [_with_recompute(value) for value in choices.recomputes]


def _with_options(names: tuple[str, ...], values: tuple[str, ...]) -> Said:
    def said(table: Layouts) -> Layouts:
        options = {
            name: np.full(table.num_layouts, value)
            for name, value in zip(names, values, strict=True)
        }
        return replace(table, options=options)

    return said


def _with_recompute(value: str) -> Said:
    return lambda table: replace(table, recompute=np.array(value))


def _rows(table: Layouts, rows: NDArray[np.int64]) -> Layouts:
    return replace(
        table,
        num_layouts=len(rows),
        degrees={n: column[rows] for n, column in table.degrees.items()},
        num_samples=table.num_samples[rows],
        num_micro_batches=table.num_micro_batches[rows],
    )


def _refused(
    graph: ModelGraph,
    table: Layouts,
    refusals: Refusals,
    axes: Iterable[str],
    reads: dict[str, set[str]],
) -> Mask:
    """The rows of the table that one of `axes` refuses, which are counted; what each axis has read
    is noted in `reads`.
    """
    refused = np.zeros(table.num_layouts, dtype=bool)
    for name in axes:
        if not (table.degree(name) > 1).any():
            continue
        watched = Watched(table)
        told = discover()[name].admits(graph, cast(Layouts, watched))
        reads[name] = reads.get(name, set()) | watched.read
        for refusal in told:
            new = refusal.refused & ~refused
            if new.any():
                row = int(np.flatnonzero(new)[0])
                example = Layout(
                    degrees={n: int(column[row]) for n, column in table.degrees.items()},
                    options={n: str(column[row]) for n, column in table.options.items()},
                )
                refusals.note(refusal.reason, int(new.sum()), str(example))
            refused |= refusal.refused
    return refused
