"""Which of torch's schedules runs a step: that which is asked for, or the like that can.

torch refuses 1f1b and dualpipev with fewer micro batches than stages, and interleaved schedules
with a number that makes no equal rounds (torch.distributed.pipelining.schedules).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

INSTEAD_OF_FEW = {"1f1b": "gpipe", "dualpipev": "zbv"}
"""What is run in place of a schedule whose step has fewer micro batches than stages."""
INSTEAD_OF_UNEVEN = {"interleaved_1f1b": "looped_bfs", "interleaved_zero_bubble": "looped_bfs"}
"""What is run in place of a schedule whose step has no equal rounds of micro batches."""


def fits(
    schedule: str, degree: Any, stages_per_rank: Any, num_micro_batches: Any
) -> NDArray[np.bool_]:
    """Whether a pipeline of this degree runs so many micro batches by `schedule`; broadcast."""
    if schedule in INSTEAD_OF_FEW:
        return np.asarray(num_micro_batches >= degree * stages_per_rank)
    if schedule in INSTEAD_OF_UNEVEN:
        rounds = np.maximum(num_micro_batches // degree, 1)
        return np.asarray(num_micro_batches % rounds == 0)
    return np.ones(np.broadcast_shapes(np.shape(degree), np.shape(num_micro_batches)), np.bool_)


def fitting(schedule: str, degree: int, stages_per_rank: int, num_micro_batches: int) -> str:
    """The schedule that runs so many micro batches: `schedule`, or the like that does.

    Example:
        >>> fitting("1f1b", 4, 1, 4), fitting("1f1b", 4, 1, 3)
        ('1f1b', 'gpipe')
    """
    if fits(schedule, degree, stages_per_rank, num_micro_batches):
        return schedule
    return INSTEAD_OF_FEW.get(schedule) or INSTEAD_OF_UNEVEN[schedule]
