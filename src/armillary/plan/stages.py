"""What each rank of a pipeline holds, when the blocks of a model are dealt to its stages."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes.stages.balance import V_SHAPED, stages_per_rank
from armillary.plan.grid import Column, Grid

FOLDED = (*V_SHAPED, "v_half")
"""Schedules whose stages run down the ranks and back up: the first rank holds both ends."""
DEALS = ("balanced", "balanced late", "even", "with ends", "ends cut")
"""How a program deals a model to stages.

"balanced" gives the stage of the head fewer blocks, so that the dearest is as cheap as can be, and
the first ones as many as that allows; "balanced late" has the fuller stages behind the others;
"even" gives all equally many; "with ends" counts what is before the blocks, and the head, as a
block each (Narayanan et al. 2021 leave it out; Le Scao et al. 2022, arXiv 2211.05100, have it);
"ends cut" deals evenly and cuts both over all ranks (Yeung et al. 2024, arXiv 2411.05288).
"""


@dataclass(frozen=True, slots=True)
class Place:
    """What a rank holds: `blocks`, and the shares of what is `before` them and `after` them."""

    blocks: Column
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Dealt:
    """The first rank of a pipeline, the fullest of those between, and the last.

    All broadcast to the grid; `fuller_from` is the first rank that holds as much as `middle`, and
    `stage_blocks` are those of the first stage, of the fullest ones between, and of the last.
    """

    first: Place
    middle: Place
    last: Place
    fuller_from: Column
    stage_blocks: tuple[Column, Column, Column]


def deal(grid: Grid, num_blocks: int, head_blocks: Column, deals: str) -> Dealt:
    """What the ranks hold, where the head weighs as much as `head_blocks` blocks; see `DEALS`."""
    ranks = grid.stages
    per_rank = grid.along(
        "schedule", [float(stages_per_rank(name, number)) for name, number in grid.schedules]
    )
    per_rank = np.where(ranks > 1, per_rank, 1.0)
    stages = ranks * per_rank
    fuller_from = np.ones((1,) * stages.ndim)
    if deals.startswith("balanced"):
        few, most, last = _balanced(num_blocks, stages, head_blocks)
        if deals == "balanced late":
            num_fuller = num_blocks - last - few * (stages - 1.0)
            fuller_from = np.maximum(ranks - 1.0 - num_fuller, 1.0)
        else:
            few = most
    elif deals == "with ends":
        most = np.where(stages > 1, np.ceil((num_blocks + 2) / stages), float(num_blocks))
        few = last = most - (stages > 1)
    else:
        few = most = last = np.ceil(num_blocks / stages)
    inner = (per_rank - 1.0) * most
    if deals == "ends cut":
        share = 1.0 / ranks
        each = Place(inner + most, share, share)
        stage_blocks = (most, most, most)
        return Dealt(each, each, each, fuller_from, stage_blocks)
    alone = (ranks == 1) * 1.0
    folded = grid.along("schedule", [float(name in FOLDED) for name, _ in grid.schedules])
    folded = folded * (ranks > 1)  # there the first rank has the last stage too
    return Dealt(
        first=Place(inner + few - folded * (most - last), 1.0, np.maximum(alone, folded)),
        middle=Place(inner + most, 0.0, 0.0),
        last=Place(inner + last + folded * (most - last), alone, 1.0 - folded),
        fuller_from=fuller_from,
        stage_blocks=(few, most, last),
    )


def _balanced(
    num_blocks: int, stages: Column, head_blocks: Column
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Blocks of the first stage, of the fullest between and of the last, beside the head.

    The dearest stage is cheapest where the others hold as much as the last with its head, or a
    block fewer: of the two the cheaper.
    """
    others = np.maximum(stages - 1.0, 1.0)
    found = []
    for fewer in (0.0, 1.0):
        most = np.maximum(np.ceil((num_blocks + head_blocks) / stages) - fewer, 1.0)
        last = np.maximum(num_blocks - others * most, 1.0)
        found.append((last, np.maximum(np.ceil((num_blocks - last) / others), last + head_blocks)))
    last = np.where(found[1][1] < found[0][1], found[1][0], found[0][0])
    alone = float(num_blocks)
    few, most = np.floor((num_blocks - last) / others), np.ceil((num_blocks - last) / others)
    return (
        np.where(stages > 1, few, alone),
        np.where(stages > 1, most, alone),
        np.where(stages > 1, last, alone),
    )
