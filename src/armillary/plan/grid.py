"""The layouts of a search as a grid: rows of degrees times choices, priced by broadcasting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.networks.groups import distinct
from armillary.spec import Layout
from armillary.spec.layouts import Layouts

DIMS = (
    "degrees",
    "micro_batch_size",
    "schedule",
    "recompute",
    "zero",
    "region",
    "attention",
    "precision",
    "offload",
)
"""The dims of a grid, in order."""

Column = NDArray[np.float64]


def at(values: NDArray[Any], dim: str, index: int) -> NDArray[Any]:
    """`values` of one choice along `dim`, which stays as a dim of 1."""
    axis = DIMS.index(dim)
    return values.take([index if values.shape[axis] > 1 else 0], axis=axis)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows of degrees times what may be chosen with each; shape (rows, choices, choices, ...).

    `degrees` holds a column an axis, of shape [rows]; `orders` are placements of the axes on the
    ranks, each all of the axes, the outermost first, and `order` says by row which is taken.
    `micro_batch_sizes` are samples that one rank takes at once. A schedule is
    (pipeline.schedule, pipeline.stages_per_rank), a region (tensor.norms, tensor.loss), an
    attention is `sequence.attention`; `offloads` say what lies in the host's memory.
    """

    degrees: Mapping[str, NDArray[np.int64]]
    orders: tuple[tuple[str, ...], ...]
    order: NDArray[np.int64]
    micro_batch_sizes: NDArray[np.int64]
    schedules: tuple[tuple[str, str], ...] = (("1f1b", "auto"),)
    recomputes: tuple[str, ...] = ("none",)
    zeros: tuple[str, ...] = ("3",)
    regions: tuple[tuple[str, str], ...] = (("whole", "whole"),)
    attentions: tuple[str, ...] = ("ring",)
    precisions: tuple[str, ...] = ("bfloat16",)
    offloads: tuple[str, ...] = ("none",)

    @classmethod
    def of(cls, layout: Layout, axes: Sequence[str], num_samples: int) -> "Grid":
        """The grid of one layout, of shape (1, ..., 1); `num_samples` of a rank in a micro batch.

        `axes` are all there are, in their own order, for those that the layout does not name.
        """
        named = tuple(layout.degrees)
        options = layout.options
        return cls(
            degrees={a: np.array([layout.degree(a)], dtype=np.int64) for a in axes},
            orders=((*(a for a in axes if a not in named), *named),),
            order=np.zeros(1, dtype=np.int64),
            micro_batch_sizes=np.array([num_samples], dtype=np.int64),
            schedules=(
                (
                    options.get("pipeline.schedule", "1f1b"),
                    options.get("pipeline.stages_per_rank", "auto"),
                ),
            ),
            recomputes=(layout.recompute,),
            zeros=(options.get("sharded.zero", "3"),),
            regions=((options.get("tensor.norms", "whole"), options.get("tensor.loss", "whole")),),
            attentions=(options.get("sequence.attention", "ring"),),
            precisions=(layout.precision,),
        )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and of choices along every other dim."""
        return tuple(len(self.choices(dim)) for dim in DIMS)

    @property
    def num_layouts(self) -> int:
        """The number of layouts: all rows with all choices."""
        return prod(self.shape)

    def choices(self, dim: str) -> Sequence[Any]:
        """What may be chosen along `dim`; of degrees the placement by row."""
        named: dict[str, Any] = {
            "degrees": self.order,
            "micro_batch_size": self.micro_batch_sizes,
            "schedule": self.schedules,
            "recompute": self.recomputes,
            "zero": self.zeros,
            "region": self.regions,
            "attention": self.attentions,
            "precision": self.precisions,
            "offload": self.offloads,
        }
        found: Sequence[Any] = named[dim]
        return found

    def along(self, dim: str, values: Any) -> NDArray[Any]:
        """`values`, one a choice along `dim`, in the shape that broadcasts over the grid."""
        shape = [1] * len(DIMS)
        shape[DIMS.index(dim)] = -1
        return np.asarray(values).reshape(shape)

    def degree(self, axis: str) -> NDArray[np.int64]:
        """The degree of `axis` by row, in the shape that broadcasts over the grid; 1 if absent."""
        found = self.degrees.get(axis)
        return self.along("degrees", np.ones_like(self.order) if found is None else found)

    @cached_property
    def stages(self) -> Column:
        """The ranks that hold other parts of the module, by row: those of a pipeline."""
        found = self.along("degrees", np.ones(len(self.order)))
        for name, axis in discover().items():
            if axis.splits_module:
                found = found * self.degree(name)
        return np.asarray(found, dtype=np.float64)

    @cached_property
    def num_ranks(self) -> NDArray[np.int64]:
        """The ranks of each row."""
        found = self.along("degrees", np.ones_like(self.order))
        for name in self.degrees:
            found = found * self.degree(name)
        return found

    @cached_property
    def batch_ranks(self) -> Column:
        """The ranks that take other samples, by row."""
        found = self.along("degrees", np.ones(len(self.order)))
        for name, axis in discover().items():
            if axis.splits_batch:
                found = found * self.degree(name)
        return np.asarray(found, dtype=np.float64)

    @cached_property
    def strides(self) -> Mapping[str, NDArray[np.int64]]:
        """How far apart neighbours along each axis are in the numbering of ranks, by row."""
        found = {axis: np.ones_like(self.order) for axis in self.degrees}
        for index, names in enumerate(self.orders):
            rows = self.order == index
            stride = np.ones(int(rows.sum()), dtype=np.int64)
            for axis in reversed([name for name in names if name in self.degrees]):
                found[axis][rows] = stride
                stride = stride * self.degrees[axis][rows]
        return found

    @cached_property
    def without_orders(self) -> tuple["Grid", NDArray[np.int64] | None]:
        """The grid with rows of equal degrees once, and which of them every row is.

        None where no two rows are equal, and the grid is this one.
        """
        first, of_row = distinct(list(self.degrees.values()))
        if len(first) == len(self.order):
            return self, None
        return self.rows(first), of_row

    def rows(self, chosen: Any) -> "Grid":
        """The grid of some of the rows."""
        return Grid(
            degrees={axis: column[chosen] for axis, column in self.degrees.items()},
            orders=self.orders,
            order=self.order[chosen],
            micro_batch_sizes=self.micro_batch_sizes,
            schedules=self.schedules,
            recomputes=self.recomputes,
            zeros=self.zeros,
            regions=self.regions,
            attentions=self.attentions,
            precisions=self.precisions,
            offloads=self.offloads,
        )

    def table(self, dims: Sequence[str], global_batch_size: int) -> tuple[Layouts, tuple[int, ...]]:
        """The layouts along `dims` alone, as a table, and the shape that its columns have there.

        Along the others the first choice is taken. The samples of a micro batch are those of all
        ranks that split the batch, and there are as many micro batches as make the global batch,
        rounded up.
        """
        shape = tuple(n if d in dims else 1 for d, n in zip(DIMS, self.shape, strict=True))

        def spread(dim: str, values: Any) -> NDArray[Any]:
            few = np.asarray(values)[: shape[DIMS.index(dim)]]
            found = np.empty(shape, dtype=few.dtype)
            found[...] = self.along(dim, few)
            return found.reshape(-1)

        batch_ranks = self.batch_ranks.ravel().astype(np.int64)
        samples = spread("degrees", batch_ranks) * spread(
            "micro_batch_size", self.micro_batch_sizes
        )
        schedules, regions = np.array(self.schedules), np.array(self.regions)
        return Layouts(
            num_layouts=prod(shape),
            degrees={axis: spread("degrees", column) for axis, column in self.degrees.items()},
            options={
                "pipeline.schedule": spread("schedule", schedules[:, 0]),
                "pipeline.stages_per_rank": spread("schedule", schedules[:, 1]),
                "sharded.zero": spread("zero", self.zeros),
                "tensor.norms": spread("region", regions[:, 0]),
                "tensor.loss": spread("region", regions[:, 1]),
                "sequence.attention": spread("attention", self.attentions),
            },
            num_samples=samples,
            num_micro_batches=-(-global_batch_size // samples),
            recompute=spread("recompute", self.recomputes),
        ), shape

    def layout(self, flat_index: int) -> Layout:
        """The layout at `flat_index`, as `train` takes it: nothing is said that goes without."""
        place = dict(zip(DIMS, np.unravel_index(flat_index, self.shape), strict=True))
        row = int(place["degrees"])
        at = {dim: self.choices(dim)[int(place[dim])] for dim in DIMS[1:]}
        names = [a for a in self.orders[int(self.order[row])] if a in self.degrees]
        degrees = {a: int(self.degrees[a][row]) for a in names if self.degrees[a][row] > 1}
        said = {
            "pipeline.schedule": at["schedule"][0],
            "pipeline.stages_per_rank": at["schedule"][1],
            "sharded.zero": at["zero"],
            "tensor.norms": at["region"][0],
            "tensor.loss": at["region"][1],
            "sequence.attention": at["attention"],
        }
        return Layout(
            degrees=degrees,
            options={k: v for k, v in said.items() if k.split(".")[0] in degrees and v != "auto"},
            micro_batch_size=int(at["micro_batch_size"]),
            precision=at["precision"],
            recompute=at["recompute"],
        )
