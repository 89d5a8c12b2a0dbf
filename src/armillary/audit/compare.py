"""A model beside its rivals: every metric with its interval, every difference paired."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from armillary.audit.bootstrap import Resamples, percentile_interval

Predictions = Mapping[str, np.ndarray]
Metrics = Callable[[dict[str, np.ndarray]], Mapping[str, float]]
Groups = Callable[[dict[str, np.ndarray]], np.ndarray]

SCHEMA = 1


def compare(
    predictions: Predictions,
    rivals: Mapping[str, Predictions],
    metrics: Metrics,
    groups: Groups | np.ndarray | None = None,
    *,
    split: str = "test",
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The document evaluation.json: metrics of the model and each rival, with intervals.

    difference = model - rival on the same resamples; `excludes_zero` says that its interval
    lies on one side of zero, not which side is better. A resample on which a metric is not
    defined (NaN, or the metric raises ValueError) is left out of that metric alone and
    counted in `num_dropped`. A number that is not defined at all is null.

    Shapes: every array of `predictions` and of each rival has the samples first, [N, ...].

    Raises: ValueError when a rival or an array has another number of samples than the model,
    or `groups` does not give one group a sample.

    Source: Efron & Tibshirani 1993, sections 12.3 and 13.3 (see audit/bootstrap.py).
    """
    model = {name: np.asarray(value) for name, value in predictions.items()}
    others = {
        rival: {name: np.asarray(value) for name, value in arrays.items()}
        for rival, arrays in rivals.items()
    }
    n = _num_samples(model, others)
    labels = groups(model) if callable(groups) else groups
    resamples = Resamples(n, labels, num_resamples, seed)
    sets = [model, *others.values()]
    whole = [_measure(metrics, arrays, None) for arrays in sets]
    drawn = [[_measure(metrics, arrays, index) for arrays in sets] for index in resamples.indices()]
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "split": split,
        "num_samples": n,
        "num_groups": resamples.num_groups,
        "num_resamples": num_resamples,
        "confidence": confidence,
        "metrics": {},
    }
    for metric in whole[0]:
        values = np.array([found.get(metric, math.nan) for found in whole])
        resampled_RS = np.array([[s.get(metric, math.nan) for s in draw] for draw in drawn])
        document["metrics"][metric] = _entry(values, resampled_RS, list(others), confidence)
    return document


def _entry(
    values: np.ndarray, resampled_RS: np.ndarray, rivals: list[str], confidence: float
) -> dict[str, Any]:
    """One metric. Shapes: values [S], resampled [R, S]; S = the model, then its rivals."""
    entry: dict[str, Any] = {"rivals": {}}
    for column, name in enumerate(["", *rivals]):
        found = percentile_interval(values[column], resampled_RS[:, column], confidence)
        stated: dict[str, Any] = {
            "value": _plain(found.value),
            "low": _plain(found.low),
            "high": _plain(found.high),
            "num_dropped": len(resampled_RS) - found.num_used,
        }
        if not name:
            entry["model"] = stated
            continue
        gap = percentile_interval(
            values[0] - values[column], resampled_RS[:, 0] - resampled_RS[:, column], confidence
        )
        stated |= {
            "difference": _plain(gap.value),
            "difference_low": _plain(gap.low),
            "difference_high": _plain(gap.high),
            "excludes_zero": gap.excludes_zero,
        }
        entry["rivals"][name] = stated
    return {"model": entry["model"], "rivals": entry["rivals"]}


def _measure(
    metrics: Metrics, arrays: dict[str, np.ndarray], index: np.ndarray | None
) -> dict[str, float]:
    """The metrics of these samples; empty where they are not defined."""
    chosen = arrays if index is None else {name: a[index] for name, a in arrays.items()}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # an empty class is expected in a resample
        try:
            return {name: float(value) for name, value in metrics(chosen).items()}
        except (ValueError, ZeroDivisionError):
            if index is None:
                raise
            return {}


def _num_samples(model: dict[str, np.ndarray], rivals: dict[str, dict[str, np.ndarray]]) -> int:
    lengths = {f"model.{name}": len(value) for name, value in model.items()}
    for rival, arrays in rivals.items():
        lengths |= {f"{rival}.{name}": len(value) for name, value in arrays.items()}
    if not model:
        raise ValueError("the model's predictions are empty")
    n = next(iter(lengths.values()))
    wrong = {name: length for name, length in lengths.items() if length != n}
    if wrong:
        raise ValueError(f"every array needs {n} samples, as the model's first; found {wrong}")
    return n


def _plain(value: float) -> float | None:
    """A JSON number, or None: JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
