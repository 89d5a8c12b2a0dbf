"""A run in short: its state, the outcome in one sentence, the figures that people ask for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from armillary.train.report import words
from armillary.train.report.planned import planned
from armillary.train.report.reading import LIVE_S, Record, number, read_run, table

SMALLER = ("loss", "mae", "rmse", "mse", "error", "brier", "crps", "nll", "perplexity", "fpr")
LARGER = (
    "auc",
    "tpr",
    "accuracy",
    "recall",
    "precision",
    "f1",
    "r2",
    "skill",
    "within",
    "score",
    "correlation",
)
NOT_FINITE = "stopped: not finite"
STATES = {
    "finished": "finished",
    "early stop": "finished",
    "stopped": "stopped",
    "nan": NOT_FINITE,
    "resumed": "",
}


def summary(run_folder: Path) -> dict[str, Any]:
    """The run in short, ready for JSON; null for what the run does not say (yet).

    Raises: `SpecError` if there is no such folder.
    """
    return summarise(read_run(Path(run_folder)))


def summarise(record: Record) -> dict[str, Any]:
    """`summary` of a run already read."""
    steps, manifest = record.steps, record.manifest
    better, metric = monitor(record)
    best = best_validation(record)
    found = {
        "run": record.folder.resolve().name,
        "recipe": manifest.get("recipe"),
        "created_utc": manifest.get("created_utc"),
        "state": state(record),
        "outcome": outcome(record),
        "num_steps": int(steps.step[-1]) if len(steps) else 0,
        "planned_steps": planned_steps(record),
        "num_epochs": _last(steps["epoch"]),
        "duration_s": record.duration_s,
        "measured_step_s": _median(steps["step_s"]),
        "measured_samples_per_s": _median(samples_per_s(record)),
        "memory_bytes": _largest(steps["memory_bytes"]),
        "phase_shares": phase_shares(record),
        "train_loss": _mean_of_last(steps["loss"]),
        "monitor": f"{better}:{metric}",
        "best_validation": best,
        "validation": _last_evaluation(record, "validation"),
        "test": _last_evaluation(record, "test"),
        "comparison": table(record.comparison).get("metrics"),
        "num_checkpoints": len(record.checkpoints),
        "events": [
            {key: event.get(key) for key in ("step", "time_s", "what", "message")}
            for event in record.events
        ],
        "plan": planned(record),
        "num_torn_lines": record.num_torn_lines,
    }
    plain: dict[str, Any] = jsonable(found)
    return plain


def state(record: Record) -> str:
    """finished, running, stopped, stopped: not finite, unfinished or empty."""
    told, test_step = "", -1
    for event in record.events:
        if event.get("what") == "ended" and told != NOT_FINITE:
            is_done = str(event.get("message")).startswith(("finished", "stopped early"))
            told = "finished" if is_done else "stopped"
        told = STATES.get(str(event.get("what")), told)
    for line in record.evaluations:
        if line.get("split") == "test":
            test_step = int(line["step"])
    if told.startswith("stopped"):
        return told
    planned = planned_steps(record)
    reached = len(record.steps) > 0 and planned is not None and record.steps.step[-1] >= planned
    if told or record.comparison is not None or test_step >= 0 or reached:
        return told or "finished"
    if record.idle_s < LIVE_S:
        return "running"
    return "unfinished" if len(record.steps) else "empty"


def planned_steps(record: Record) -> int | None:
    """Steps that the settings ask for, if the manifest says enough."""
    settings = table(record.manifest.get("settings"))
    num_samples = number(table(record.manifest.get("num_samples")).get("train"))
    batch, epochs = number(settings.get("global_batch_size")), number(settings.get("epochs"))
    planned = math.inf
    if num_samples > 0 and batch > 0 and epochs > 0:
        planned = epochs * math.ceil(num_samples / batch)
    if number(settings.get("max_steps")) > 0:
        planned = min(planned, number(settings.get("max_steps")))
    return int(planned) if math.isfinite(planned) else None


def monitor(record: Record) -> tuple[str, str]:
    """What the best checkpoint was chosen by: ("min", "mae_c")."""
    said = record.manifest.get("monitor") or table(record.best).get("monitor") or "min:loss"
    better, _, metric = str(said).partition(":")
    return ("max" if better == "max" else "min"), metric or "loss"


def direction(metric: str, record: Record) -> int:
    """-1 where smaller is better, +1 where larger is, 0 where the name does not tell.

    What follows `_at_` in a name is held still: of tpr_at_fpr_10 the first is measured.
    """
    better, monitored = monitor(record)
    if metric == monitored:
        return 1 if better == "max" else -1
    parts = metric.lower().partition("_at_")[0].split("_")
    larger, smaller = (any(p in known for p in parts) for known in (LARGER, SMALLER))
    return int(larger) - int(smaller)


def validation_curve(record: Record, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a validation metric, or of "loss"."""
    points = [
        (int(line["step"]), number(_measured(line, metric)))
        for line in record.evaluations
        if line.get("split") != "test"
    ]
    points = [point for point in points if math.isfinite(point[1])]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points], dtype=float)


def best_validation(record: Record) -> dict[str, Any] | None:
    """Metric, value and step of the best validation so far."""
    better, metric = monitor(record)
    step, value = validation_curve(record, metric)
    if len(step):
        at = int(value.argmax() if better == "max" else value.argmin())
        return {"metric": metric, "value": float(value[at]), "step": int(step[at])}
    if record.best and math.isfinite(number(record.best.get("value"))):
        return {"metric": metric, "value": record.best["value"], "step": record.best.get("step")}
    return None


def samples_per_s(record: Record) -> np.ndarray:
    """Samples a second of every step."""
    with np.errstate(all="ignore"):
        return record.steps["samples"] / record.steps["step_s"]


def phase_shares(record: Record) -> dict[str, float]:
    """Median share of a step's time by phase."""
    with np.errstate(all="ignore"):
        shares = {
            name: _median(seconds / record.steps["step_s"])
            for name, seconds in record.steps.phases_s.items()
        }
    return {name: share for name, share in shares.items() if share is not None}


def main_metric(record: Record) -> str | None:
    """The compared metric to speak of: the monitored one, else the first."""
    metrics = table(table(record.comparison).get("metrics"))
    _, monitored = monitor(record)
    return monitored if monitored in metrics else next(iter(metrics), None)


def outcome(record: Record) -> str:
    """The run in one sentence."""
    now, best = state(record), best_validation(record)
    parts = []
    if now not in ("finished", "empty") and len(record.steps):
        loss, last = _mean_of_last(record.steps["loss"]), int(record.steps.step[-1])
        planned = planned_steps(record)
        of = f" of {planned:,}" if planned else ""
        parts.append(f"{now} at step {last:,}{of}, training loss {words.short(loss)}")
    if best:
        value, at = words.short(best["value"]), number(best["step"])
        parts.append(f"best validation {best['metric']} {value} at step {at:,.0f}")
    parts += _test_parts(record)
    if not parts:
        return "No step has been recorded."
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


def _test_parts(record: Record) -> list[str]:
    metric = main_metric(record)
    if metric is None:
        test = _last_evaluation(record, "test")
        if test is None:
            return []
        name = monitor(record)[1]
        value = _measured(test, name)
        return [f"test {name} {words.short(value)}"] if value is not None else []
    entry = table(table(table(record.comparison)["metrics"])[metric])
    model = table(entry.get("model"))
    head = f"test {metric} " + words.interval(
        model.get("value"), model.get("low"), model.get("high")
    )
    return [head + _verdicts(metric, table(entry.get("rivals")), record)]


def _verdicts(metric: str, rivals: dict[str, Any], record: Record) -> str:
    """`, better than a by 0.5 [0.3, 0.7] and b by ...`, the strongest rival first."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for name, rival in rivals.items():
        verdict, text = judge(metric, table(rival), record)
        if verdict:
            groups.setdefault(verdict, []).append(
                (abs(number(table(rival)["difference"])), (text and f"{name} by {text}") or name)
            )
    said = [
        f"{verdict} {words.listing([text for _, text in sorted(groups[verdict])])}"
        for verdict in ("better than", "worse than", "different from", "not told apart from")
        if verdict in groups
    ]
    return ", " + ", ".join(said) if said else ""


def judge(metric: str, rival: dict[str, Any], record: Record) -> tuple[str, str]:
    """What the paired difference says of the model, and the amount with its interval."""
    gap, low, high = (number(rival.get(f"difference{end}")) for end in ("", "_low", "_high"))
    if not math.isfinite(gap):
        return "", ""
    if not rival.get("excludes_zero"):
        return "not told apart from", ""
    sign = direction(metric, record)
    verdict = {1: "better than", -1: "worse than", 0: "different from"}[
        int(math.copysign(1, gap)) * sign
    ]
    if gap < 0:
        gap, low, high = -gap, -high, -low
    return verdict, words.interval(gap, low, high)


def jsonable(value: Any) -> Any:
    """`value` with NumPy numbers plain and non-finite ones null."""
    if isinstance(value, dict):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _measured(line: dict[str, Any], metric: str) -> Any:
    metrics = table(line.get("metrics"))
    return metrics[metric] if metric in metrics else line.get("loss") if metric == "loss" else None


def _last_evaluation(record: Record, split: str) -> dict[str, Any] | None:
    found = [line for line in record.evaluations if line.get("split") == split]
    keys = ("step", "epoch", "loss", "metrics")
    return {key: found[-1].get(key) for key in keys} if found else None


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _median(values: np.ndarray) -> float | None:
    finite = _finite(values)
    return float(np.median(finite)) if finite.size else None


def _largest(values: np.ndarray) -> float | None:
    finite = _finite(values)
    return float(finite.max()) if finite.size else None


def _last(values: np.ndarray) -> int | None:
    finite = _finite(values)
    return int(finite[-1]) + 1 if finite.size else None


def _mean_of_last(values: np.ndarray) -> float | None:
    """Mean over the last fortieth of the steps: one step alone is noise."""
    finite = _finite(values)
    return float(finite[-max(1, finite.size // 40) :].mean()) if finite.size else None
