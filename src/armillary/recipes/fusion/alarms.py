"""How good the alarms are, shot by shot and row by row.

What is scored, for soft and hard endings alike: the rows from the start of a shot until 30 ms
before its current begins to fall (`labels.Ending.fall_row`). A shot's score is the highest
probability among them: an alarm would have sounded there. A row counts as positive where a
disruption begins within the next 100 ms.

Two things could be mistaken for skill, and both have a figure of their own: long shots have more
rows to raise an alarm in, and late rows are positive more often. Time since start alone stands
beside the model as a rival for that reason.

Letters of shapes: N shots, T rows of a shot.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from armillary.recipes.fusion.labels import STEP_S

Array = NDArray[np.float64]

LEAD_ROWS = 6
"""30 ms: an alarm later than this leaves no time to act (Kates-Harbeck et al. 2019)."""
CEILING_ROWS = 60
"""300 ms: an alarm earlier than this is reported apart; it may not be about this ending."""
HORIZON_ROWS = 20
FALSE_ALARM_RATES = (0.05, 0.10, 0.20)


def auc(score_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties by half; NaN if a class lacks."""
    positive = np.asarray(positive_N, bool)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, place, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    total = rank[place][positive].sum() - num_positive * (num_positive + 1) / 2
    return float(total / (num_positive * num_negative))


def scored_rows(fall_row: int, num_rows: int) -> int:
    """How many rows of a shot are scored: all until 30 ms before the fall, at least one."""
    return min(max(int(fall_row) - LEAD_ROWS + 1, 1), num_rows)


def shot_scores(predictions: Mapping[str, NDArray], ceiling_rows: int | None = None) -> Array:
    """The highest probability (N,) of each shot's scored rows, or of the last of them only:
    with `ceiling_rows`, of those not earlier before the fall than that."""
    scores = []
    for probability, fall_row in zip(
        predictions["probability"], predictions["fall_row"], strict=True
    ):
        stop = scored_rows(fall_row, len(probability))
        start = 0 if ceiling_rows is None else min(max(int(fall_row) - ceiling_rows, 0), stop - 1)
        scores.append(probability[start:stop].max())
    return np.array(scores, np.float64)


def true_alarm_rate(score_N: Array, disrupted_N: NDArray[np.bool_], false_rate: float) -> float:
    """Share of disruptions above the threshold that at most `false_rate` of soft shots pass."""
    soft = np.sort(score_N[~disrupted_N])
    if not len(soft) or not disrupted_N.any():
        return float("nan")
    threshold = soft[len(soft) - 1 - int(np.floor(false_rate * len(soft)))]
    return float((score_N[disrupted_N] > threshold).mean())


def slice_auc(predictions: Mapping[str, NDArray], horizon_rows: int = HORIZON_ROWS) -> float:
    """AUC over scored rows: those within `horizon_rows` before a disruption against all others."""
    scores, positives = [], []
    for probability, fall_row, disrupted in zip(
        *(predictions[name] for name in ("probability", "fall_row", "disrupted")), strict=True
    ):
        stop = scored_rows(fall_row, len(probability))
        scores.append(probability[:stop])
        positives.append((np.arange(stop) >= fall_row - horizon_rows) & bool(disrupted))
    return auc(np.concatenate(scores), np.concatenate(positives))


def warning_times(predictions: Mapping[str, NDArray], false_rate: float = 0.10) -> Array:
    """Seconds (M,) from the first alarm to the quench, of each disruption that was warned of.

    The threshold is the one that `false_rate` of the soft shots pass.
    """
    disrupted = np.asarray(predictions["disrupted"], bool)
    scores = shot_scores(predictions)
    soft = np.sort(scores[~disrupted])
    if not len(soft):
        return np.zeros(0)
    threshold = soft[len(soft) - 1 - int(np.floor(false_rate * len(soft)))]
    times = []
    for i in np.flatnonzero(disrupted & (scores > threshold)):
        first = int(np.argmax(predictions["probability"][i] > threshold))
        times.append((float(predictions["quench_row"][i]) - first) * STEP_S)
    return np.array(times)


def evaluate(predictions: Mapping[str, NDArray]) -> dict[str, float]:
    """The recipe's metrics: AUCs and rates between 0 and 1, the median warning in seconds."""
    disrupted = np.asarray(predictions["disrupted"], bool)
    score = shot_scores(predictions)
    found = {
        "shot_auc": auc(score, disrupted),
        "shot_auc_within_300ms": auc(shot_scores(predictions, CEILING_ROWS), disrupted),
        "slice_auc": slice_auc(predictions),
    }
    for rate in FALSE_ALARM_RATES:
        found[f"tpr_at_fpr_{round(100 * rate):02d}"] = true_alarm_rate(score, disrupted, rate)
    times = warning_times(predictions)
    found["median_warning_s"] = float(np.median(times)) if len(times) else float("nan")
    return found
