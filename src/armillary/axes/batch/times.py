"""How often in an optimiser step something is sent, by its micro batches and pipeline."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from armillary.axes.batch.ranks import num_batch_ranks
from armillary.axes.door import Transfer
from armillary.axes.stages.balance import ONE_STAGE
from armillary.spec import ModelGraph
from armillary.spec.layouts import Layouts

Column = NDArray[np.float64]


def num_calls(layouts: Layouts) -> Column:
    """How often a rank runs a module in a step, on average over the ranks of a pipeline, of which
    one holds it.
    """
    return layouts.num_micro_batches / layouts.degree("pipeline")


def rank_samples(layouts: Layouts) -> Column:
    """How many samples a rank takes in one micro batch."""
    return layouts.num_samples / num_batch_ranks(layouts)


def sent_again(sent: Transfer, graph: ModelGraph, layouts: Layouts) -> list[Transfer]:
    """`sent` in a forward pass, and besides in the backward pass of blocks that are recomputed."""
    again = np.broadcast_to(layouts.recompute != "none", layouts.num_layouts)
    if not again.any() or not in_block(sent.path, graph):
        return [sent]
    phase = "backward" if sent.hidden_behind else ""
    return [sent, replace(sent, per_step=sent.per_step * again, hidden_behind=phase)]


def in_block(path: str, graph: ModelGraph) -> bool:
    """Whether the module at `path` is in a block, which is what may be recomputed."""
    return any(f"{path}.".startswith(f"{block.path}.") for block in graph.blocks)


def num_reductions(layouts: Layouts) -> Column:
    """How often in a step gradients are reduced: once, or with `zero` 3 and 2 every micro batch."""
    reduces_each = (layouts.degree("sharded") > 1) & (layouts.degree("pipeline") == 1)
    reduces_each &= layouts.option("sharded.zero", "3") != "1"
    return np.where(reduces_each, layouts.num_micro_batches, 1).astype(np.float64)


def num_gathers(layouts: Layouts, is_root: bool) -> tuple[Column, Column]:
    """How often in a step a unit is gathered before its forward and its backward pass.

    The root stays gathered between them, as all do with `zero` 2 and 1. In a pipeline a stage
    stays gathered from its first backward pass on: with `zero=3` every micro batch's forward pass
    but the first finds it so, or gives it back to the one before, so there is one gather for each
    and one more; schedules of several stages a rank keep it gathered throughout.
    """
    micro = layouts.num_micro_batches.astype(np.float64)
    in_pipeline = layouts.degree("pipeline") > 1
    schedule = layouts.option("pipeline.schedule", "1f1b")
    gives_back = layouts.option("sharded.zero", "3") == "3"
    gives_back &= ~in_pipeline | np.isin(schedule, ONE_STAGE)
    gives_back &= not is_root
    forward = np.where(in_pipeline, 1.0, micro)
    return forward, np.where(gives_back, micro, 0.0)
