"""The table of a model and its rivals: rows of numbers, and where their dots and whiskers lie."""

from __future__ import annotations

import math
from typing import Any

from armillary.train.report import words
from armillary.train.report.reading import Record, number, table
from armillary.train.report.summary import direction, judge, main_metric

Row = dict[str, Any]


def comparison_tables(record: Record) -> list[Row]:
    """One table a metric, the monitored one first; the model first, rivals from best to worst."""
    metrics = table(table(record.comparison).get("metrics"))
    first = main_metric(record)
    order = sorted(metrics, key=lambda name: name != first)
    return [_metric_table(name, table(metrics[name]), record) for name in order]


def _metric_table(metric: str, entry: Row, record: Record) -> Row:
    sign = direction(metric, record)
    rivals = {str(name): table(rival) for name, rival in table(entry.get("rivals")).items()}
    ordered = sorted(rivals, key=lambda name: -(sign or 1) * _sortable(rivals[name].get("value")))
    stated = [("model", table(entry.get("model"))), *((name, rivals[name]) for name in ordered)]
    values = Scale([number(s.get(end)) for _, s in stated for end in ("value", "low", "high")])
    ends = ("difference", "difference_low", "difference_high")
    gaps = Scale([0.0, *(number(s.get(end)) for _, s in stated[1:] for end in ends)])
    rows: list[Row] = []
    for name, one in stated:
        value, low, high = (one.get(key) for key in ("value", "low", "high"))
        row: Row = {
            "name": name,
            "is_model": not rows,
            "value": words.interval(value, low, high),
            "whisker": values.whisker(value, low, high),
        }
        if rows:
            gap, gap_low, gap_high = (one.get(end) for end in ends)
            verdict, _ = judge(metric, one, record)
            row |= {
                "difference": words.interval(gap, gap_low, gap_high),
                "gap_whisker": gaps.whisker(gap, gap_low, gap_high),
                "verdict": VERDICTS.get(verdict, ""),
                "tone": TONES.get(verdict, ""),
            }
        dropped = int(number(one.get("num_dropped")) or 0) if one.get("num_dropped") else 0
        row["dropped"] = f"{dropped:,} resamples without a value" if dropped else ""
        rows.append(row)
    wish = {1: "larger is better", -1: "smaller is better", 0: ""}[sign]
    return {
        "metric": metric,
        "wish": wish,
        "rows": rows,
        "ticks": values.ticks(),
        "gap_ticks": gaps.ticks(),
        "zero": gaps.place(0.0),
        "has_rivals": len(rows) > 1,
    }


VERDICTS = {
    "better than": "model better",
    "worse than": "model worse",
    "different from": "different",
    "not told apart from": "not told apart",
}
TONES = {"better than": "good", "worse than": "bad"}


class Scale:
    """Places on a line from 0 to 100 for the values it was given, with a little room."""

    def __init__(self, values: list[float]) -> None:
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        margin = 0.06 * (high - low) or max(abs(high) * 0.05, 1e-9)
        self.low, self.high = low - margin, high + margin

    def place(self, value: Any) -> float:
        """Percent of the line's length."""
        return round(100 * (number(value) - self.low) / (self.high - self.low), 2)

    def whisker(self, value: Any, low: Any, high: Any) -> dict[str, float] | None:
        """Places of the dot and of both ends; the dot alone if there is no interval."""
        if not math.isfinite(number(value)):
            return None
        dot = self.place(value)
        ends = [self.place(v) if math.isfinite(number(v)) else dot for v in (low, high)]
        return {"dot": dot, "low": ends[0], "high": ends[1]}

    def ticks(self) -> list[dict[str, Any]]:
        """Three or four round values and their places."""
        rough = (self.high - self.low) / 3
        power = 10.0 ** math.floor(math.log10(rough))
        unit = min((1, 2, 2.5, 5, 10), key=lambda u: abs(u * power - rough)) * power
        first, places = math.ceil(self.low / unit), max(0, 1 - math.floor(math.log10(unit)))
        values = [k * unit for k in range(first, math.floor(self.high / unit) + 1)]
        texts = [f"{value:.{places}f}" for value in values]
        while texts and "." in texts[0] and all(text.endswith("0") for text in texts):
            texts = [text[:-1].rstrip(".") for text in texts]
        signed = [text.replace("-", words.MINUS) for text in texts]
        return [{"place": self.place(v), "text": t} for v, t in zip(values, signed, strict=True)]


def _sortable(value: Any) -> float:
    found = number(value)
    return found if math.isfinite(found) else -math.inf
