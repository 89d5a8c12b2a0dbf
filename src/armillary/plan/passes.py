"""What a micro batch costs the ranks of a pipeline: the first, those between, and the last."""

from dataclasses import dataclass

import numpy as np

from armillary.core.pipeline import Passes
from armillary.plan.grid import DIMS, Column, Grid
from armillary.plan.stages import Dealt, Place
from armillary.plan.work import Parts, Work

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


def mean_and_dearest(parts: Parts, dealt: Dealt, grid: Grid) -> Ranks:
    """The passes of one micro batch, without messages."""
    ranks = grid.stages
    whole = parts.before + parts.blocks + parts.after
    again = again_s(parts, grid)

    def mean(name: str) -> Column:
        return np.asarray(getattr(whole, name) / ranks)

    def total(place: Place) -> Column:
        return _total(parts, place) + place.blocks * again

    between = total(dealt.middle) * (ranks > 2)
    return Ranks(
        mean=Passes(
            forward_s=mean("forward_s"),
            backward_input_s=mean("backward_input_s"),
            backward_weight_s=mean("backward_weight_s"),
        ),
        again_s=np.asarray(parts.num_blocks / ranks * again),
        dearest_s=np.maximum(np.maximum(total(dealt.first), between), total(dealt.last)),
        forward_launch_s=mean("forward_launch_s"),
        backward_launch_s=mean("backward_launch_s"),
    )


def _total(parts: Parts, place: Place) -> Column:
    """Seconds of a rank's passes."""

    def seconds(work: Work) -> Column:
        return np.asarray(work.forward_s + work.backward_input_s + work.backward_weight_s)

    of_block = seconds(parts.blocks) / max(parts.num_blocks, 1)
    ends = place.before * seconds(parts.before) + place.after * seconds(parts.after)
    return np.asarray(place.blocks * of_block + ends)


def again_s(parts: Parts, grid: Grid) -> Column:
    """What recomputing costs a block, along the choices of recomputing."""
    full = parts.blocks.whole_again_s / max(parts.num_blocks, 1)
    some = parts.blocks.again_s / max(parts.num_blocks, 1)
    by_choice = {"none": 0.0 * full, "selective": some + 0.0 * full, "full": full}
    return np.concatenate([by_choice[choice] for choice in grid.recomputes], axis=RECOMPUTE)
