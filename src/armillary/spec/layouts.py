"""Many layouts as one table, so that a search prices a million rows in one pass of NumPy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from armillary.spec.layout import Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class Layouts:
    """A struct of arrays: one row a layout. `degrees[axis]` has shape [num_layouts]."""

    num_layouts: int
    degrees: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(cls, *layouts: Layout) -> Self:
        """The table of `layouts`, a row each."""
        axes: Iterable[str] = dict.fromkeys(axis for row in layouts for axis in row.degrees)
        return cls(
            num_layouts=len(layouts),
            degrees={
                axis: np.array([row.degree(axis) for row in layouts], dtype=np.int64)
                for axis in axes
            },
        )

    def degree(self, axis: str) -> NDArray[np.int64]:
        """The degree of `axis` in every row, 1 where the table does not name it."""
        found = self.degrees.get(axis)
        return np.ones(self.num_layouts, dtype=np.int64) if found is None else found
