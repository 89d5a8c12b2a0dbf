"""Medians of repeated timings, with how sure they are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Median:
    """A median and its 95 % interval, in the unit of the samples; NaN of none."""

    value: float
    low: float
    high: float
    num_samples: int

    def inverse(self, amount: float) -> "Median":
        """`amount` over each: seconds of `amount` bytes as bytes/s."""
        return Median(
            value=amount / self.value,
            low=amount / self.high,
            high=amount / self.low,
            num_samples=self.num_samples,
        )


def median_of(samples: ArrayLike, seed: int = 0) -> Median:
    """The median of `samples`, and its percentile interval by the bootstrap.

    The median of timings, not their mean: one interruption of the system moves a mean far.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3; Hoefler &
    Belli, SC'15, rules 5 and 8.
    """
    values = np.asarray(samples, np.float64).ravel()
    if values.size == 0:
        return Median(value=np.nan, low=np.nan, high=np.nan, num_samples=0)
    drawn = np.random.default_rng(seed).integers(0, values.size, (NUM_RESAMPLES, values.size))
    medians = np.median(values[drawn], axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(np.median(values))
    return Median(value=value, low=float(low), high=float(high), num_samples=values.size)
