"""What the dearest rank of a pipeline computes, when blocks are dealt to stages."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.axes.stages.balance import stages_per_rank
from armillary.plan.grid import Column, Grid


@dataclass(frozen=True, slots=True)
class Dealt:
    """Blocks of a rank: in the `middle`, on the `first` and on the `last`, fractions where uneven.

    All broadcast to the grid; `per_rank` is the number of stages of a rank.
    """

    first: Column
    middle: Column
    last: Column
    per_rank: Column


def deal(
    grid: Grid, num_blocks: int, head_blocks: Column, balances: bool, counts_ends: bool = False
) -> Dealt:
    """How many blocks each rank gets, where the head weighs as much as `head_blocks` blocks.

    With `balances` the last stage gets fewer, so that the dearest is as cheap as can be; else all
    get equally many, rounded up. With `counts_ends` what is before the blocks and the head are
    dealt as if they were a block each.
    """
    per_rank = grid.along(
        "schedule", [float(stages_per_rank(name, number)) for name, number in grid.schedules]
    )
    ranks = grid.stages
    per_rank = np.where(ranks > 1, per_rank, 1.0)
    stages = ranks * per_rank
    even = np.ceil(num_blocks / stages)
    if counts_ends:
        even = np.where(ranks > 1, np.ceil((num_blocks + 2) / stages), even)
        ends = per_rank * even - (ranks > 1)
        return Dealt(ends, per_rank * even, ends, per_rank)
    if not balances:
        return Dealt(per_rank * even, per_rank * even, per_rank * even, per_rank)
    most = _least_most(num_blocks, stages, head_blocks)
    last = np.clip(np.floor(most - head_blocks), 1.0, even)
    whole = np.where(ranks > 1, most, float(num_blocks))
    last = np.where(ranks > 1, last, float(num_blocks))
    return Dealt(per_rank * whole, per_rank * whole, (per_rank - 1.0) * whole + last, per_rank)


def _least_most(num_blocks: int, stages: Column, head_blocks: Column) -> NDArray[np.float64]:
    """The fewest blocks a stage may hold at most so that all find room beside the head."""
    most = np.ceil(num_blocks / stages) + 0.0 * head_blocks
    for _ in range(3):  # one more block a stage makes room for a head of that many stages
        on_last = np.clip(np.floor(most - head_blocks), 1.0, most)
        most = np.where((stages - 1.0) * most + on_last < num_blocks, most + 1.0, most)
    return most
