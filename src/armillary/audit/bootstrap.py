"""Percentile intervals by resampling groups of samples with replacement.

Neighbouring days, or the time slices of one shot, are not independent samples. What is
independent is the block they came from, so whole groups are drawn: G groups of the data, G
draws, every drawn group with all its samples.

Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap": percentile interval
section 13.3, paired comparison section 12.3 (the same draws for both statistics); groups as
the unit, Davison & Hinkley 1997, section 3.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], float]
"""A number from the indices [M] of the samples that a resample holds."""

DRAWS_PER_BLOCK = 1 << 22  # about 32 MiB of counts at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A statistic of all samples with its percentile interval.

    `num_used` resamples gave a number; the others (a class absent, nothing to divide by)
    are left out. `low` and `high` are NaN where none gave one.
    """

    value: float
    low: float
    high: float
    num_used: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return bool(self.low > 0.0 or self.high < 0.0)


class Resamples:
    """`num_resamples` draws of groups with replacement, the same for every statistic asked.

    A draw depends on the seed, the number of resamples and the number of groups alone, so
    that two statistics of the same object are paired, today and in a year.

    Raises: ValueError when `groups` does not name one group for each of the `n` samples, or
    when there is nothing to draw from.
    """

    def __init__(
        self,
        n: int,
        groups: np.ndarray | None = None,
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        if n < 1 or num_resamples < 1:
            raise ValueError(f"nothing to resample: {n} samples, {num_resamples} resamples")
        labels = np.arange(n) if groups is None else np.asarray(groups)
        if labels.shape != (n,):
            raise ValueError(f"groups has shape {labels.shape}, expected one for each of {n}")
        names, group_of_sample = np.unique(labels, return_inverse=True)
        self.n = n
        self.num_groups = len(names)
        self.num_resamples = num_resamples
        self.group_of_sample = group_of_sample.reshape(n)
        sizes = np.bincount(self.group_of_sample, minlength=self.num_groups)
        self._order = np.argsort(self.group_of_sample, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._sizes = sizes
        self._seed = seed

    def draws(self) -> Iterator[np.ndarray]:
        """Drawn groups [G] of one resample after the other."""
        rng = np.random.default_rng(self._seed)
        for _ in range(self.num_resamples):
            yield rng.integers(0, self.num_groups, size=self.num_groups)

    def indices(self) -> Iterator[np.ndarray]:
        """Indices [M] of the samples in one resample after the other; M varies with the groups."""
        for drawn in self.draws():
            if self.num_groups == self.n:
                yield self._order[drawn]
                continue
            sizes = self._sizes[drawn]
            ends = np.cumsum(sizes)
            within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
            yield self._order[np.repeat(self._starts[drawn], sizes) + within]

    def apply(self, statistic: Statistic) -> np.ndarray:
        """The statistic of every resample [R]; NaN where it is not defined."""
        return np.array([_number(statistic, index) for index in self.indices()])

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean of `values` [N] or [N, K] in every resample [R] or [R, K].

        The same numbers as `apply` with a mean, to rounding, in a few matrix products: a mean
        needs only the sum and size of each group, and how often each was drawn.
        """
        columns = np.asarray(values, dtype=np.float64)
        if len(columns) != self.n:
            raise ValueError(f"{len(columns)} values for {self.n} samples")
        table = columns.reshape(self.n, -1)[self._order]
        sums_GK = np.add.reduceat(table, self._starts, axis=0)
        parts, block = [], max(1, DRAWS_PER_BLOCK // self.num_groups)
        counts = np.empty((min(block, self.num_resamples), self.num_groups))
        draws = self.draws()
        for first in range(0, self.num_resamples, block):
            size = min(block, self.num_resamples - first)
            for row in range(size):
                counts[row] = np.bincount(next(draws), minlength=self.num_groups)
            part = counts[:size]
            parts.append((part @ sums_GK) / (part @ self._sizes)[:, None])
        return np.concatenate(parts).reshape(self.num_resamples, *columns.shape[1:])


def interval(
    statistic: Statistic,
    n: int,
    groups: np.ndarray | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """`statistic` of all `n` samples with its percentile interval.

    `statistic` takes the indices of the samples to look at; `groups` [N] names the block each
    sample belongs to (default: every sample its own).

    Raises: ValueError on a confidence outside (0, 1), and as `Resamples`.

    Example:
        >>> errors = np.array([1.0, 2.0, 3.0, 4.0])
        >>> found = interval(lambda index: errors[index].mean(), len(errors))
        >>> found.value, found.low < found.value < found.high
        (2.5, True)
    """
    resamples = Resamples(n, groups, num_resamples, seed)
    value = _number(statistic, np.arange(n))
    return percentile_interval(value, resamples.apply(statistic), confidence)


def difference(
    statistic: Statistic,
    rival: Statistic,
    n: int,
    groups: np.ndarray | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """`statistic` minus `rival`, both on the same resamples, with its percentile interval.

    Raises: as `interval`.
    """
    return interval(
        lambda index: statistic(index) - rival(index), n, groups, num_resamples, seed, confidence
    )


def percentile_interval(value: float, resampled: np.ndarray, confidence: float = 0.95) -> Interval:
    """The middle `confidence` of the finite `resampled` [R], about `value`."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    finite = resampled[np.isfinite(resampled)]
    if finite.size == 0:
        return Interval(value=value, low=float("nan"), high=float("nan"), num_used=0)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return Interval(value=value, low=float(low), high=float(high), num_used=int(finite.size))


def _number(statistic: Statistic, index: np.ndarray) -> float:
    """The statistic, or NaN where this resample has none (one class only, division by zero)."""
    try:
        with np.errstate(all="ignore"):
            return float(statistic(index))
    except (ValueError, ZeroDivisionError, FloatingPointError):
        return float("nan")
