"""Many layouts as one table, so that a search prices a million rows in one pass of NumPy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from armillary.spec.layout import Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class Layouts:
    """A struct of arrays: one row a layout, every array of shape [num_layouts].

    `num_samples` are those of all ranks in one micro batch, `num_micro_batches` how many micro
    batches make a step; both 1 where a table was made without them. `recompute` and `compile` may
    be one entry for all rows. `order` are the axes in mesh order, outermost first, where it is the
    same for all rows; empty where it is not said.
    """

    num_layouts: int
    degrees: Mapping[str, NDArray[np.int64]]
    options: Mapping[str, NDArray[np.str_]]
    num_samples: NDArray[np.int64]
    num_micro_batches: NDArray[np.int64]
    recompute: NDArray[np.str_] = field(default_factory=lambda: np.array("none"))
    compile: NDArray[np.bool_] = field(default_factory=lambda: np.array(False))
    order: tuple[str, ...] = ()

    @classmethod
    def of(cls, *layouts: Layout, num_samples: int = 1, num_micro_batches: int = 1) -> Self:
        """The table of `layouts`, a row each."""
        names: Iterable[str] = dict.fromkeys(name for row in layouts for name in row.options)
        axes: Iterable[str] = dict.fromkeys(axis for row in layouts for axis in row.degrees)
        orders = {tuple(axis for axis, d in row.degrees.items() if d > 1) for row in layouts}
        return cls(
            num_layouts=len(layouts),
            degrees={
                axis: np.array([row.degree(axis) for row in layouts], dtype=np.int64)
                for axis in axes
            },
            options={
                name: np.array([row.options.get(name, "") for row in layouts], dtype=np.str_)
                for name in names
            },
            num_samples=np.full(len(layouts), num_samples, dtype=np.int64),
            num_micro_batches=np.full(len(layouts), num_micro_batches, dtype=np.int64),
            recompute=np.array([row.recompute for row in layouts], dtype=np.str_),
            compile=np.array([row.compile for row in layouts], dtype=np.bool_),
            order=orders.pop() if len(orders) == 1 else (),
        )

    def degree(self, axis: str) -> NDArray[np.int64]:
        """The degree of `axis` in every row, 1 where the table does not name it."""
        found = self.degrees.get(axis)
        return np.ones(self.num_layouts, dtype=np.int64) if found is None else found

    def option(self, name: str, default: str) -> NDArray[np.str_]:
        """The option `name`, such as `pipeline.schedule`, in every row; `default` where unsaid."""
        found = self.options.get(name)
        if found is None:
            return np.full(self.num_layouts, default)  # np.str_ as a dtype would cut it to a letter
        is_unsaid = found == ""
        return np.where(is_unsaid, default, found) if is_unsaid.any() else found
