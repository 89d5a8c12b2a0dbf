"""How often in an optimiser step something is sent, by its micro batches and pipeline."""

import numpy as np
from numpy.typing import NDArray

from armillary.axes.stages.balance import ONE_STAGE
from armillary.spec.layouts import Layouts

Column = NDArray[np.float64]


def num_calls(layouts: Layouts) -> Column:
    """How often a rank runs a module in a step, on average over the ranks of a pipeline, of which
    one holds it.
    """
    return layouts.num_micro_batches / layouts.degree("pipeline")


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
