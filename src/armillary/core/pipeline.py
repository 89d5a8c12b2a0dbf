"""A step of a pipeline in closed form: seconds by schedule, and how many micro batches are kept.

The forms are those of the orders in which torch's schedules run (torch.distributed.pipelining):
played event by event (`core/events.py`) those of equal stages agree with them, as tests show.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PUBLISHED = ("zb_h2", "v_half")
"""Schedules of papers that torch does not have: for comparison with what they measured."""
SCHEDULES = (
    "1f1b",
    "gpipe",
    "interleaved_1f1b",
    "looped_bfs",
    "interleaved_zero_bubble",
    "zbv",
    "dualpipev",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """Seconds of one micro batch on one rank, all its stages: forward, and the two backwards."""

    forward_s: Any
    backward_input_s: Any
    backward_weight_s: Any

    @property
    def total_s(self) -> Any:
        """Forward and backward together."""
        return self.forward_s + self.backward_input_s + self.backward_weight_s

    def scaled(self, factor: Any) -> "Passes":
        """All passes `factor` times as long."""
        return Passes(
            forward_s=self.forward_s * factor,
            backward_input_s=self.backward_input_s * factor,
            backward_weight_s=self.backward_weight_s * factor,
        )


def idle_passes_s(schedule: str, degree: Any, stages_per_rank: Any, passes: Passes) -> Array:
    """Seconds that a rank waits while a step fills and drains, of `degree` equal ranks.

    They do not depend on the number of micro batches, of which there are at least twice `degree`.
    Those of dualpipev are right within 10 %, the others exactly.

    Source: Narayanan et al. 2021, arXiv 2104.04473, section 2.2 (1F1B, interleaved); Qi et al.
    2023, arXiv 2401.10241 (zero bubble; zb_h2), Qi et al. 2024, arXiv 2405.15362 (v_half), and
    DeepSeek-V3, arXiv 2412.19437, table 2 (DualPipe): both for passes of any length, as torch
    orders them, from the recurrence in `core/events.py`.
    """
    f, b, w = passes.forward_s, passes.backward_input_s, passes.backward_weight_s
    others = np.maximum(degree - 1.0, 0.0)
    if schedule in ("1f1b", "gpipe"):
        return np.asarray(others * (f + b + w))
    if schedule == "zb_h2":
        return np.asarray(others * np.maximum(f + b - 2.0 * w, 0.0))
    if schedule == "v_half":
        return np.asarray(others * (f + b + w) / 2.0)
    if schedule in ("interleaved_1f1b", "looped_bfs"):
        return np.asarray(others * (f + b + w) / stages_per_rank)
    if schedule == "interleaved_zero_bubble":
        return np.asarray(others * np.maximum(b, f + b - w) / stages_per_rank)
    if schedule == "zbv":
        return np.asarray(others * np.maximum(np.maximum(f, b), 2.0 * (b - w)) / 2.0)
    longest = np.maximum(0.5 * f + 1.5 * b - w, 2.0 * b - 1.5 * w)
    return np.asarray(others * np.maximum(longest, 0.0) / 2.0)


def step_s(
    schedule: str,
    degree: Any,
    stages_per_rank: Any,
    num_micro_batches: Any,
    mean: Passes,
    dearest_s: Any,
) -> Array:
    """Seconds of all micro batches on ranks that need not be equal.

    `mean` are the passes of a micro batch, the mean over the ranks, `dearest_s` those of the rank
    that takes longest. It sets the pace; the others are waited for once, as the step fills and
    drains: for 1f1b and gpipe m max + sum of the others, which is exact where one rank is dearer
    and the others are alike.

    Source: the recurrence in `core/events.py`; Huang et al. 2019, arXiv 1811.06965, section 2.2.
    """
    ranks = np.asarray(degree, np.float64)
    others_s = (ranks * mean.total_s - dearest_s) / np.maximum(ranks - 1.0, 1.0)
    others = mean.scaled(others_s / np.where(mean.total_s > 0, mean.total_s, 1.0))
    idle_s = idle_passes_s(schedule, ranks, stages_per_rank, others)
    return np.asarray(num_micro_batches * dearest_s + idle_s)


def kept_micro_batches(
    schedule: str, degree: Any, stages_per_rank: Any, num_micro_batches: Any, rank: Any = 0.0
) -> Array:
    """Of how many micro batches a rank keeps activations at once, of its whole share of blocks.

    `rank` is its place along the pipeline; the first keeps most.

    Source: as of `idle_passes_s`; Narayanan et al. 2021, section 2.2, and the schedules of torch:
    an interleaved one runs 2 (p - 1 - rank) + (v - 1) p + 1 stages ahead of its first backward.
    """
    p, v, m = degree, stages_per_rank, num_micro_batches
    if schedule in ("gpipe", "looped_bfs"):
        return np.asarray(m * np.ones_like(p, dtype=np.float64))
    if schedule == "1f1b":
        return np.asarray(np.minimum(m, p - rank))
    if schedule == "zbv":
        return np.asarray(np.minimum(m, 1.0 * p))
    if schedule == "zb_h2":
        return np.asarray(np.minimum(m, 2.0 * p - 1.0))
    if schedule == "v_half":
        return np.asarray(np.minimum(m, p / 2.0 + 1.0))
    if schedule == "dualpipev":
        return np.asarray(np.minimum(m, p + 1.0))
    if schedule == "interleaved_zero_bubble":
        return np.asarray(np.minimum(m, ((v - 1.0) * p + (p - 1.0 - rank) + 1.0) / v + 1.0))
    ahead = 2.0 * (p - 1.0 - rank) + (v - 1.0) * p + 1.0
    return np.asarray(np.minimum(m, ahead / v))
