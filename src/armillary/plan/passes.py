"""What a micro batch costs the ranks of a pipeline: the first, those between, and the last."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from armillary.core.pipeline import Passes
from armillary.plan.grid import DIMS, Column, Grid
from armillary.plan.stages import Dealt
from armillary.plan.work import Parts

RECOMPUTE = DIMS.index("recompute")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Seconds of one micro batch: `mean` over the ranks of a pipeline, and of the `dearest`.

    `again_s` is what recomputing adds to the backward pass of the mean rank; the `_launch_s` are
    what its host needs for a forward and for a backward pass.
    """

    mean: Passes
    again_s: Column
    dearest_s: Column
    forward_launch_s: Column
    backward_launch_s: Column


@dataclass(frozen=True, slots=True)
class _Rank:
    """A rank with so many blocks; `first` and `last` are 1 where it holds what is at that end."""

    parts: Parts
    blocks: Column
    first: Any
    last: Any
    times: Any

    def total(self, name: str) -> Column:
        """The field `name` of its work."""
        of_blocks = self.blocks / max(self.parts.num_blocks, 1) * getattr(self.parts.blocks, name)
        ends = self.first * getattr(self.parts.before, name)
        return np.asarray(of_blocks + ends + self.last * getattr(self.parts.after, name))


def mean_and_dearest(parts: Parts, dealt: Dealt, grid: Grid) -> Ranks:
    """The passes of one micro batch, without messages."""
    stages = grid.stages
    alone = (stages == 1) * 1.0
    between = np.maximum(stages - 2.0, 0.0)
    ranks = [
        _Rank(parts, dealt.first, 1.0, alone, 1.0),
        _Rank(parts, dealt.middle, 0.0, 0.0, between),
        _Rank(parts, dealt.last, alone, 1.0, 1.0 - alone),
    ]

    def mean(name: str) -> Column:
        weighted = [rank.total(name) * rank.times for rank in ranks]
        return np.asarray(sum(weighted[1:], weighted[0]) / stages)

    again = again_s(parts, grid)
    totals = [
        rank.total("forward_s")
        + (rank.total("backward_input_s") + rank.total("backward_weight_s"))
        + rank.blocks * again
        for rank in ranks
    ]
    blocks = sum((rank.blocks * rank.times for rank in ranks[1:]), ranks[0].blocks) / stages
    return Ranks(
        mean=Passes(
            forward_s=mean("forward_s"),
            backward_input_s=mean("backward_input_s"),
            backward_weight_s=mean("backward_weight_s"),
        ),
        again_s=np.asarray(blocks * again),
        dearest_s=np.maximum(np.maximum(totals[0], totals[1] * (between > 0)), totals[2]),
        forward_launch_s=mean("forward_launch_s"),
        backward_launch_s=mean("backward_launch_s"),
    )


def again_s(parts: Parts, grid: Grid) -> Column:
    """What recomputing costs a block, along the choices of recomputing."""
    full = parts.blocks.forward_s / max(parts.num_blocks, 1)
    some = parts.blocks.again_s / max(parts.num_blocks, 1)
    by_choice = {"none": 0.0 * full, "selective": some + 0.0 * full, "full": full}
    return np.concatenate([by_choice[choice] for choice in grid.recomputes], axis=RECOMPUTE)
