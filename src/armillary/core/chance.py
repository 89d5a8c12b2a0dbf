"""Many steps at once, each a little different: jitter, slow devices, links that others use."""

# Shapes: N samples; R... coordinates of the replicas, one dim an axis that splits the batch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import erfc, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.core.play import Played, Tasks

Array = NDArray[np.float64]
TABLE_REACH, TABLE_ENTRIES = 8.0, 4001


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """What differs from sample to sample and from replica to replica.

    `fixed(task)` and `wire(task)` are factors on the two parts of a task's seconds, of a shape that
    broadcasts to [N, R...]; `shared(task)` are the dims of R... whose replicas a task waits for and
    goes on together with, because it is a collective over them.
    """

    fixed: Callable[[int], Any]
    wire: Callable[[int], Any]
    shared: Callable[[int], tuple[int, ...]]


def replay(tasks: Tasks, played: Played, draw: Draw) -> Array:
    """Seconds until every replica's last task is done, of shape [N, R...] as the factors have it.

    The order on streams and the contention on links are those that `play` found.
    """
    before = _before(tasks)
    last_use = _last_use(played.order, before)
    ends: dict[int, Any] = {}
    step: Any = 0.0
    for place, index in enumerate(played.order):
        start: Any = 0.0
        for needed in before[index]:
            start = np.maximum(start, ends[needed])
        span_s = played.end_s[index] - played.start_s[index]
        fixed_s = span_s - _sent_s(tasks, index, span_s)
        dims = draw.shared(index)
        if fixed_s > 0:
            start = start + fixed_s * draw.fixed(index)
        if dims and np.ndim(start):
            start = np.max(start, axis=dims, keepdims=True)
        if span_s > fixed_s:
            start = start + (span_s - fixed_s) * draw.wire(index)
        ends[index] = start
        step = np.maximum(step, start)
        for needed in before[index]:
            if last_use[needed] == place:
                del ends[needed]
    return np.asarray(step, dtype=np.float64)


def _sent_s(tasks: Tasks, index: int, span_s: float) -> float:
    """Seconds of a task that went over the wire."""
    if not tasks.wire_s[index]:
        return 0.0
    return max(span_s - tasks.fixed_s[index], 0.0)


def _before(tasks: Tasks) -> list[tuple[int, ...]]:
    """What each task waits for, with the one before it on its stream."""
    found = list(tasks.after)
    for line in tasks.streams:
        for one, other in pairwise(line):
            if one not in found[other]:
                found[other] = (*found[other], one)
    return found


def _last_use(order: Sequence[int], before: Sequence[tuple[int, ...]]) -> list[int]:
    """By task the place in the order at which it is waited for last; -1 if nobody does."""
    found = [-1] * len(before)
    for place, index in enumerate(order):
        for needed in before[index]:
            found[needed] = place
    return found


class Slowest:
    """The largest of n standard normal numbers, drawn at once from its own distribution."""

    def __init__(self) -> None:
        self._z = np.linspace(-TABLE_REACH, TABLE_REACH, TABLE_ENTRIES)
        above = np.array([0.5 * erfc(z / sqrt(2.0)) for z in self._z])
        self._log_above = np.log(above)[::-1]
        self._z = self._z[::-1]

    def draw(self, number: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """Of every entry of `shape` the largest of `number`.

        Source: its distribution function is that of one to the power of n (David and Nagaraja 2003,
        "Order Statistics", equation 2.1.1), inverted in a table.
        """
        if number <= 1:
            return rng.standard_normal(shape)
        log_u = np.log(1.0 - rng.random(shape))
        above = -np.expm1(log_u / number)
        return np.interp(np.log(above), self._log_above, self._z)


def run_goodput(
    *,
    step_s: float,
    days: float,
    between_s: float,
    interval_s: float,
    checkpoint_s: float,
    restart_s: float,
    num_runs: int,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """The share of `days` that goes into steps that count, and how often each of the runs failed.

    Failures come with exponential times of mean `between_s` between them, also while a run saves or
    starts again. Every `interval_s` of steps a run saves for `checkpoint_s`; a failure takes it
    back to the last saved step and costs `restart_s`, anew if it fails meanwhile. Shapes: [runs].

    Source: the model of Daly 2006 (`core/failures.py`), played.
    """
    whole_s = days * 86400.0
    clock, work = np.zeros(num_runs), np.zeros(num_runs)
    failed = np.zeros(num_runs)
    steps = max(round(interval_s / step_s), 1) if np.isfinite(interval_s) else 0
    work_s = steps * step_s if steps else np.inf
    cycle_s = work_s + checkpoint_s
    starts = np.zeros(num_runs, dtype=np.bool_)
    while (clock < whole_s).any():
        up_s = rng.exponential(between_s, num_runs) if np.isfinite(between_s) else np.inf
        left_s = np.maximum(whole_s - clock, 0.0)
        begin_s = np.where(starts, restart_s, 0.0)
        lives_s = np.minimum(up_s, left_s)
        own_s = np.maximum(lives_s - begin_s, 0.0)
        cycles = np.floor(own_s / cycle_s) if np.isfinite(cycle_s) else 0.0 * own_s
        kept = cycles * (work_s if np.isfinite(work_s) else 0.0)
        rest_s = np.minimum(own_s - (cycles * cycle_s if np.isfinite(cycle_s) else 0.0), work_s)
        ends_first = up_s >= left_s
        work += np.where(left_s > 0, kept + np.where(ends_first, rest_s, 0.0), 0.0)
        failed += (left_s > 0) & ~ends_first
        clock = clock + np.where(left_s > 0, lives_s, 0.0)
        starts = ~ends_first
    return work / whole_s, failed
