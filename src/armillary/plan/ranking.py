"""Which layout is better: objectives, limits, the frontier, and where more devices buy little."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]

OBJECTIVES = ("time", "cost", "energy", "memory")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a whole training may take: seconds and dollars for so many steps; infinite if unsaid."""

    deadline_s: float = inf
    budget_usd: float = inf
    num_steps: int = 0

    @property
    def are_set(self) -> bool:
        """Whether there is a deadline or a budget."""
        return self.deadline_s < inf or self.budget_usd < inf

    def kept(self, elapsed_s: Column, usd: Column) -> NDArray[np.bool_]:
        """Which layouts keep them, by seconds and dollars of a step with failures in it."""
        in_time = elapsed_s * self.num_steps <= self.deadline_s
        return np.asarray(in_time & (usd * self.num_steps <= self.budget_usd))


def pareto(first: Column, second: Column) -> NDArray[np.int64]:
    """The indices that none other beats in both, by rising `first`; of equals one stays.

    Example:
        >>> pareto(np.array([3.0, 1.0, 2.0, 2.0]), np.array([1.0, 5.0, 2.0, 7.0])).tolist()
        [1, 2, 0]
    """
    order = np.lexsort((second, first))
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(second[order])[:-1]])
    return order[second[order] < best_before]


def ranked(keys: Sequence[Column]) -> NDArray[np.int64]:
    """All indices, the best first, by the first key and where equal by the next."""
    return np.lexsort(tuple(reversed(list(keys))))


def sweet_spot(elapsed_s: Column, cost: Column, least_efficiency: float) -> int:
    """The index of the fastest that costs at most 1 / `least_efficiency` of the cheapest.

    Cost is in device hours, so it is the largest job whose devices do at least this share of what
    they would do in the job that uses them best.
    """
    cheap = np.flatnonzero(cost <= cost.min() / least_efficiency * (1 + 1e-12))
    return int(cheap[np.lexsort((cost[cheap], elapsed_s[cheap]))[0]])
