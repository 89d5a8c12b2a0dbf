"""Ratios of times taken in turn, with the interval that resampling gives."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

NUM_RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """A median ratio, its 95 % interval, and the number of pairs behind it."""

    median: float
    low: float
    high: float
    num_pairs: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The median of ours / theirs over pairs, with a percentile bootstrap over the pairs."""
    return interval_of(np.asarray(ours, dtype=float) / np.asarray(theirs, dtype=float))


def interval_of(values: Sequence[float] | np.ndarray) -> Ratio:
    """The median of `values` with a percentile bootstrap."""
    found = np.asarray(values, dtype=float)
    random = np.random.default_rng(0)
    picks = random.integers(len(found), size=(NUM_RESAMPLES, len(found)))
    medians = np.median(found[picks], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Ratio(float(np.median(found)), float(low), float(high), len(found))


def turned_pairs(blocks: Sequence[float]) -> list[float]:
    """Times of A B B A turns summed two by two, so that a steady drift of the machine cancels."""
    return [first + second for first, second in zip(blocks[::2], blocks[1::2], strict=False)]
