"""The charts of a run as plotly figures in plain dictionaries, thinned to what an eye can see.

Colours starting with @ are names that the page resolves for light and dark.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import numpy as np

from armillary.train.report import words
from armillary.train.report.reading import Record, number
from armillary.train.report.summary import (
    best_validation,
    monitor,
    phase_shares,
    samples_per_s,
    validation_curve,
)

NUM_POINTS = 1600  # of a raw curve; two for each pixel column of a chart
NUM_BUCKETS = 120  # of a median or stacked one, in a small chart
MOST_METRICS = 12

Chart = dict[str, Any]


def loss_chart(record: Record) -> Chart | None:
    """Training loss, raw and smoothed, with validation and its best."""
    step, loss = record.steps.step, record.steps["loss"]
    at, value = validation_curve(record, "loss")
    if not np.isfinite(loss).any() and not len(at):
        return None
    window = max(1, len(step) // 40)
    smooth = trailing_mean(loss, window)
    traces = []
    if np.isfinite(loss).any():
        if window > 1:
            traces.append(_line(*extremes(step, loss), "train, each step", "@faint", 1))
            name, thin = f"train, mean of {window:,} steps", NUM_POINTS // 2
            traces.append(_line(*bucketed(step, smooth, _last, thin), name, "@first", 2.2))
        else:
            traces.append(_line(step, loss, "train", "@first", 2.2))
    if len(at):
        traces.append(_points(at, value, "validation", "@second"))
    best, metric = best_validation(record), monitor(record)[1]
    layout: dict[str, Any] = {"xaxis": {"title": {"text": "step"}}}
    if best and best["step"] is not None and len(at):
        layout |= _best_mark(number(best["step"]), f"best {metric}")
    seen = np.concatenate([smooth, value])
    layout["yaxis"] = _range(seen, loss, may_be_log=True)
    return {
        "title": "Loss",
        "note": "",
        "height": 340,
        "wide": True,
        "data": traces,
        "layout": layout,
    }


def training_charts(record: Record) -> list[Chart]:
    """Metrics over steps, learning rate and gradient norm, as small multiples."""
    charts, best = [], best_validation(record)
    names = dict.fromkeys(
        str(name)
        for line in record.evaluations
        if isinstance(line.get("metrics"), dict)
        for name in line["metrics"]
    )
    for name in list(names)[:MOST_METRICS]:
        at, value = validation_curve(record, name)
        if len(at) > 1 or (len(at) and not record.comparison):  # one point is no curve
            layout: dict[str, Any] = {"yaxis": _range(value, value)}
            note = f"last {words.short(float(value[-1]))}"
            if best and best["metric"] == name:
                layout |= _best_mark(number(best["step"]), "best")
                note = f"best {words.short(best['value'])} at step {best['step']:,}"
            charts.append(_small(name, note, [_points(at, value, name, "@second")], layout))
    step, rate, norm = record.steps.step, record.steps["learning_rate"], record.steps["grad_norm"]
    if np.isfinite(rate).any():
        line = _line(*extremes(step, rate), "learning rate", "@first", 1.8)
        charts.append(_small("learning rate", "", [line], {"yaxis": {"rangemode": "tozero"}}))
    if np.isfinite(norm).any():
        lines = [_line(*extremes(step, norm), "each step", "@faint", 1)]
        lines.append(_line(*bucketed(step, norm, np.median), "median", "@first", 1.8))
        note = f"median {words.short(float(np.median(norm[np.isfinite(norm)])))}"
        layout = {"yaxis": _range(norm, norm, may_be_log=True)}
        charts.append(_small("gradient norm", note, lines, layout))
    return charts


def speed_charts(record: Record) -> list[Chart]:
    """Throughput, time by phase of a step, and memory."""
    charts, step = [], record.steps.step
    speed = samples_per_s(record)
    finite = speed[np.isfinite(speed)]
    if finite.size:
        lines = [_line(*extremes(step, speed), "each step", "@faint", 1)]
        lines.append(_line(*bucketed(step, speed, np.median), "median", "@first", 1.8))
        top = 1.15 * float(np.percentile(finite, 99))
        note = f"median {words.short(float(np.median(finite)))}"
        charts.append(_small("samples per second", note, lines, {"yaxis": {"range": [0, top]}}))
    if phase_shares(record):
        charts.append(_phase_chart(record))
    memory = record.steps["memory_bytes"]
    if (memory > 0).any():
        gib = memory / 2**30
        unit, scaled = ("GiB", gib) if np.nanmax(gib) >= 1 else ("MiB", gib * 1024)
        line = _line(*extremes(step, scaled), unit, "@first", 1.8)
        note = f"most {words.size(float(np.nanmax(memory)))}"
        layout = {"yaxis": {"rangemode": "tozero"}}
        charts.append(_small(f"memory, {unit}", note, [line], layout))
    return charts


def wheel_of(phase: str, index: int) -> int:
    """The colour of a phase: its own of six, grey for what is left over."""
    return 6 if phase == "other" else index % 6


def _phase_chart(record: Record) -> Chart:
    traces = []
    for index, (name, seconds) in enumerate(record.steps.phases_s.items()):
        wheel = wheel_of(name, index)
        x, y = bucketed(record.steps.step, seconds * 1e3, np.median)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "stackgroup": "phases",
                "name": html.escape(name),
                "x": _numbers(x),
                "y": _numbers(y),
                "line": {"width": 0.6, "color": f"@wheel{wheel}"},
                "fillcolor": f"@fill{wheel}",
                "hovertemplate": "%{y:.3g} ms",
            }
        )
    median = record.steps["step_s"]
    median = median[np.isfinite(median)]
    note = f"median {words.duration(float(np.median(median)))}" if median.size else ""
    if median.size and np.median(median) < 1:
        note = f"median {words.short(float(np.median(median)) * 1e3)} ms"
    return _small("step by phase, ms", note, traces, {"showlegend": False})


# ------------------------------------------------------------------------------------- thinning


def extremes(x: np.ndarray, y: np.ndarray, num_points: int = NUM_POINTS) -> tuple[Any, Any]:
    """At most `num_points` of a curve: the least and the largest of each stretch, in order."""
    keep = np.flatnonzero(np.isfinite(y))
    if len(keep) > num_points:
        kept = []
        for part in np.array_split(keep, num_points // 2):
            kept += sorted({int(part[y[part].argmin()]), int(part[y[part].argmax()])})
        keep = np.array(kept)
    return x[keep], y[keep]


def bucketed(
    x: np.ndarray, y: np.ndarray, of: Callable[[np.ndarray], Any], num_buckets: int = NUM_BUCKETS
) -> tuple[Any, Any]:
    """One point for each stretch of a curve: its last x and `of` its finite values."""
    if not len(x):
        return x, y
    parts = np.array_split(np.arange(len(x)), min(len(x), num_buckets))
    values = [y[part][np.isfinite(y[part])] for part in parts]
    at = np.array([x[part[-1]] for part in parts])
    return at, np.array([float(of(v)) if v.size else np.nan for v in values])


def trailing_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at each place, of those that are finite."""
    finite = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    last = np.arange(1, len(y) + 1)
    first = np.maximum(last - window, 0)
    with np.errstate(all="ignore"):
        mean: np.ndarray = (total[last] - total[first]) / (count[last] - count[first])
    return mean


def _last(values: np.ndarray) -> float:
    return float(values[-1])


# --------------------------------------------------------------------------------------- pieces


def _small(title: str, note: str, data: list[Chart], layout: dict[str, Any]) -> Chart:
    base: dict[str, Any] = {"showlegend": False, "xaxis": {"nticks": 5}}
    return {
        "title": title,
        "note": note,
        "height": 210,
        "wide": False,
        "data": data,
        "layout": base | layout,
    }


def _line(x: np.ndarray, y: np.ndarray, name: str, colour: str, width: float) -> Chart:
    faint = {"hoverinfo": "skip"} if colour == "@faint" else {"hovertemplate": "%{y:.4g}"}
    return {
        "type": "scatter",
        "mode": "lines",
        "name": html.escape(name),
        "x": _numbers(x),
        "y": _numbers(y),
        "line": {"width": width, "color": colour},
        **faint,
    }


def _points(x: np.ndarray, y: np.ndarray, name: str, colour: str) -> Chart:
    thin_x, thin_y = extremes(x, y)
    size = 6 if len(thin_x) < 60 else 3
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": html.escape(name),
        "x": _numbers(thin_x),
        "y": _numbers(thin_y),
        "line": {"width": 1.4, "color": colour},
        "marker": {"size": size, "color": colour},
        "hovertemplate": "%{y:.4g}",
    }


def _best_mark(step: float, text: str) -> dict[str, Any]:
    line = {
        "type": "line",
        "x0": step,
        "x1": step,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"width": 1, "dash": "dot", "color": "@muted"},
    }
    label = {
        "x": step,
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
        "text": html.escape(text),
        "font": {"size": 11, "color": "@muted"},
    }
    return {"shapes": [line], "annotations": [label]}


def _range(seen: np.ndarray, raw: np.ndarray, may_be_log: bool = False) -> dict[str, Any]:
    """An axis that shows all of `seen` and all but the wildest of `raw`."""
    values, noise = seen[np.isfinite(seen)], raw[np.isfinite(raw)]
    if not values.size:
        return {}
    if noise.size:
        ends = np.percentile(noise, [0.5, 99.5])
        calm = np.clip(values, *np.percentile(noise, [0, 99.5])) if seen is raw else values
        values = np.concatenate([calm, ends])
    low, high = float(values.min()), float(values.max())
    if may_be_log and low > 0 and high / low > 50:
        low, high = float(np.log10(low)), float(np.log10(high))
        return {"type": "log", "dtick": 1, "range": [low - 0.1, high + 0.1]}
    margin = 0.06 * (high - low) or max(abs(high) * 0.05, 1e-9)
    return {"range": [low - margin, high + margin]}


def _numbers(values: np.ndarray) -> list[float | int | None]:
    """JSON numbers of five digits; whole ones whole, non-finite ones null."""
    if values.dtype.kind == "i":
        return [int(value) for value in values]
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values.tolist()]
