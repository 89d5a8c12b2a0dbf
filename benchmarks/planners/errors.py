"""How far predicted step times are from measured ones."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Absolute relative errors of predicted step times, in percent; `bias` is the mean error.

    `num_told` of `num_asked` runs have a prediction.
    """

    num_asked: int
    num_told: int
    mean: float = 0.0
    median: float = 0.0
    p90: float = 0.0
    most: float = 0.0
    bias: float = 0.0


def errors_of(measured_s: Sequence[float], predicted_s: Sequence[float | None]) -> Errors:
    """How far the predictions are from what was measured; None is no prediction."""
    told = [
        100.0 * (predicted / measured - 1.0)
        for measured, predicted in zip(measured_s, predicted_s, strict=True)
        if predicted is not None
    ]
    if not told:
        return Errors(num_asked=len(measured_s), num_told=0)
    sizes = sorted(abs(error) for error in told)
    return Errors(
        num_asked=len(measured_s),
        num_told=len(told),
        mean=sum(sizes) / len(sizes),
        median=quantile(sizes, 0.5),
        p90=quantile(sizes, 0.9),
        most=sizes[-1],
        bias=sum(told) / len(told),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of sorted numbers, straight lines between them."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
