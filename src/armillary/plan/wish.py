"""What a plan is asked for, and what a search finds: plain columns, and the grids behind them."""

from dataclasses import dataclass, field, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from armillary.plan.choices import Fixed
from armillary.plan.grid import DIMS, Column, Grid
from armillary.plan.ranking import Limits
from armillary.plan.rows import Count
from armillary.spec import Layout, Refused, Search


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be planned: devices, batch, objective, what is settled, and the limits.

    The layout uses `num_devices` or fewer; if it `uses_all`, for another objective than time not
    many fewer. `precisions` may be chosen from; a `wide` search leaves less out. `num_shown`
    runners-up are told, the sweet spot has at least `least_efficiency`, and scaling curves are made
    if it `scales`.
    """

    num_devices: int
    global_batch_size: int
    objective: str = "time"
    precisions: tuple[str, ...] = ("float32",)
    fixed: Fixed = field(default_factory=Fixed)
    limits: Limits = field(default_factory=Limits)
    uses_all: bool = True
    wide: bool = False
    scales: bool = True
    num_shown: int = 10
    least_efficiency: float = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Contenders:
    """Layouts that are the best of their row, as columns of one length.

    `grid` and `place` say where each was priced: the grid's index, and the layout's in it. `row` is
    the row's index among those that were given. `busy_s` is what the devices compute.
    """

    num_devices: Count
    step_s: Column
    memory_bytes: Column
    busy_s: Column
    row: Count
    grid: Count
    place: Count

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """All contenders of the parts, in order; of no part none."""
        empty = np.zeros(0)
        return cls(
            **{
                f.name: np.concatenate([getattr(part, f.name) for part in parts] or [empty])
                for f in fields(cls)
            }
        )

    def some(self, index: NDArray[np.int64]) -> "Contenders":
        """Those at `index`."""
        return Contenders(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def __len__(self) -> int:
        return len(self.step_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search found: contenders, the grids they were priced in, and the account of it."""

    contenders: Contenders
    grids: tuple[Grid, ...]
    refused: tuple[Refused, ...]
    search: Search

    def layout(self, contender: int) -> Layout:
        """The layout of a contender."""
        grid = self.grids[int(self.contenders.grid[contender])]
        return grid.layout(int(self.contenders.place[contender]))

    def alone(self, contender: int) -> Grid:
        """The grid of a contender alone."""
        grid = self.grids[int(self.contenders.grid[contender])]
        return one_of(grid, int(self.contenders.place[contender]))


def one_of(grid: Grid, place: int) -> Grid:
    """The grid of one of the layouts of `grid`."""
    where = dict(zip(DIMS, (int(i) for i in np.unravel_index(place, grid.shape)), strict=True))
    row = grid.rows(np.array([where["degrees"]]))
    return replace(
        row,
        micro_batch_sizes=grid.micro_batch_sizes[[where["micro_batch_size"]]],
        schedules=(grid.schedules[where["schedule"]],),
        recomputes=(grid.recomputes[where["recompute"]],),
        zeros=(grid.zeros[where["zero"]],),
        regions=(grid.regions[where["region"]],),
        attentions=(grid.attentions[where["attention"]],),
        precisions=(grid.precisions[where["precision"]],),
        offloads=(grid.offloads[where["offload"]],),
    )
