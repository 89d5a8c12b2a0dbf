"""A step of a pipeline played event by event: exact for stages of any length, for a few layouts.

Where `core/pipeline.py` has a closed form for a million rows, this one knows every pass: it walks
through the order in which each rank runs its passes, and starts each when the rank is free and what
it needs has arrived. All times are arrays over keys (layouts), so one walk plays many.
"""

# Shapes: K keys, S stages of all ranks
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.core.orders import BACKWARD, FORWARD, INPUT, WEIGHT, Order, Run, orders

Array = NDArray[np.float64]

__all__ = ["BACKWARD", "FORWARD", "INPUT", "WEIGHT", "Order", "Run", "orders", "step_s"]


def step_s(
    of_ranks: Sequence[Order],
    forward_s: Any,
    backward_input_s: Any,
    backward_weight_s: Any,
    hop_s: Any = 0.0,
) -> Array:
    """Seconds until the last rank is done, of shape [K].

    The passes are of one micro batch and of shape [K, S], `hop_s` what passes between the ranks of
    two neighbouring stages, of shape [K]; it delays who waits for it and nobody else.

    Raises: `ValueError` if the orders wait for one another for ever.
    Source: the recurrence start = max(rank free, input there), as Qi et al. 2023, arXiv 2401.10241.
    """
    length = {FORWARD: forward_s, INPUT: backward_input_s, WEIGHT: backward_weight_s}
    length = {kind: np.atleast_2d(np.asarray(s, np.float64)) for kind, s in length.items()}
    length[BACKWARD] = length[INPUT] + length[WEIGHT]
    hop = np.asarray(hop_s, np.float64)
    last = max(run.stage for order in of_ranks for run in order)
    num_keys = np.broadcast_shapes(*(s.shape for s in length.values()))[0]
    free = [np.zeros(num_keys) for _ in of_ranks]
    place = [0] * len(of_ranks)
    ready: dict[tuple[str, int, int], Array] = {}
    left = sum(len(order) for order in of_ranks)
    while left:
        before = left
        for rank, order in enumerate(of_ranks):
            while place[rank] < len(order):
                run = order[place[rank]]
                arrived = _arrival(run, last, ready, hop)
                if arrived is None:
                    break
                free[rank] = np.maximum(free[rank], arrived) + length[run.kind][:, run.stage]
                ready[_result(run)] = free[rank]
                place[rank] += 1
                left -= 1
        if left == before:
            raise ValueError("the orders of the ranks wait for one another")
    return np.max(free, axis=0)


def _result(run: Run) -> tuple[str, int, int]:
    kind = INPUT if run.kind == BACKWARD else run.kind
    return kind, run.stage, run.micro_batch


def _arrival(
    run: Run, last: int, ready: dict[tuple[str, int, int], Array], hop: Array
) -> Array | None:
    """When what a pass needs is there; None if it has not been made yet."""
    k = run.micro_batch
    if run.kind == FORWARD:
        if run.stage == 0:
            return np.zeros(1)
        needed, wait = (FORWARD, run.stage - 1, k), hop
    elif run.kind == WEIGHT:
        needed, wait = (INPUT, run.stage, k), 0.0 * hop
    elif run.stage == last:
        needed, wait = (FORWARD, run.stage, k), 0.0 * hop
    else:
        needed, wait = (INPUT, run.stage + 1, k), hop
    made = ready.get(needed)
    return None if made is None else made + wait
