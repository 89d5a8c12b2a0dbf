"""What a plan predicted of a run, beside what was measured: the run folder's plan.json."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from armillary.spec import Layout, Plan, SpecError
from armillary.train.report import words
from armillary.train.report.reading import Record, table


def planned(record: Record) -> dict[str, Any] | None:
    """The plan's numbers and the measured ones; None where the run was not planned.

    `predicted_over_measured_step` is above 1 where the run was faster than planned. `remark` says
    why the two may not be of the same thing.
    """
    plan = _plan(record)
    if plan is None:
        return None
    measured_s = _median(record.steps["step_s"])
    measured_bytes = _largest(record.steps["memory_bytes"])
    return {
        "machine": plan.machine,
        "predicted_step_s": plan.predicted_step_s,
        "measured_step_s": measured_s,
        "predicted_over_measured_step": _ratio(plan.predicted_step_s, measured_s),
        "predicted_memory_bytes": plan.predicted_memory_bytes,
        "measured_memory_bytes": measured_bytes,
        "predicted_over_measured_memory": _ratio(plan.predicted_memory_bytes, measured_bytes),
        "terms": {
            name: sum(t.predicted_s for t in plan.terms if t.name == name) for name in _names(plan)
        },
        "remark": _remark(plan, record),
    }


def planned_rows(record: Record) -> dict[str, Any] | None:
    """`planned` in words: rows of what, predicted, measured and the difference; and a remark."""
    found = planned(record)
    if found is None:
        return None
    rows = [
        (
            "a step",
            _seconds(found["predicted_step_s"]),
            _seconds(found["measured_step_s"]),
            _difference(found["predicted_over_measured_step"]),
        ),
        (
            "memory of a rank",
            words.size(found["predicted_memory_bytes"]),
            words.size(found["measured_memory_bytes"]),
            _difference(found["predicted_over_measured_memory"]),
        ),
    ]
    terms = [
        (name, _seconds(seconds), f"{100 * seconds / found['predicted_step_s']:.0f} %")
        for name, seconds in found["terms"].items()
    ]
    return {"rows": rows, "terms": terms, "machine": found["machine"], "remark": found["remark"]}


def _plan(record: Record) -> Plan | None:
    path = record.folder / "plan.json"
    if not path.is_file():
        return None
    try:
        return Plan.read(path)
    except SpecError:
        return None


def _names(plan: Plan) -> list[str]:
    return list(dict.fromkeys(term.name for term in plan.terms))


def _remark(plan: Plan, record: Record) -> str:
    """Where the run was of another batch or layout than the plan."""
    settings = table(record.manifest.get("settings"))
    batch, layout = settings.get("global_batch_size"), table(record.manifest.get("layout"))
    parts = []
    if batch and batch != plan.global_batch_size:
        parts.append(f"planned for a batch of {plan.global_batch_size:,}, run with {batch:,}")
    if layout and _degrees(layout) != {n: d for n, d in plan.layout.degrees.items() if d > 1}:
        run = Layout(degrees=_degrees(layout))
        parts.append(f"planned for {plan.layout}, begun on {run}")
    if table(record.manifest.get("hardware")).get("device") == "cpu":
        parts.append("the memory measured on a CPU is that of the whole process")
    return "; ".join(parts)


def _degrees(layout: dict[str, Any]) -> dict[str, int]:
    return {str(n): int(d) for n, d in table(layout.get("degrees")).items() if int(d) > 1}


def _seconds(value: float | None) -> str:
    if value is None:
        return words.short(None)
    return f"{words.short(float(value) * 1e3)} ms" if value < 1 else words.duration(value)


def _difference(ratio: float | None) -> str:
    """How far the prediction is off what was measured."""
    if ratio is None:
        return ""
    return f"{100 * (ratio - 1):+.0f} %".replace("-", words.MINUS)


def _ratio(predicted: float, measured: float | None) -> float | None:
    return predicted / measured if measured else None


def _median(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else None


def _largest(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    found = float(finite.max()) if finite.size else 0.0
    return found if found > 0 and math.isfinite(found) else None
