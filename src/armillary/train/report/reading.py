"""A run folder as columns of numbers: whatever part of it is there, however long it is.

metrics.jsonl is read line by line into arrays, so that a run of a million steps needs some
hundred megabytes and seconds, not gigabytes of dictionaries.
"""

from __future__ import annotations

import json
import math
import time
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from armillary.spec import SpecError

COLUMNS = ("epoch", "loss", "learning_rate", "grad_norm", "samples", "step_s", "memory_bytes")
LIVE_S = 120.0  # a file written to within this time belongs to a run under way

Line = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Steps:
    """Steps in order, one array a column; NaN where a line did not say."""

    step: np.ndarray
    columns: Mapping[str, np.ndarray]
    phases_s: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]


@dataclass(kw_only=True, slots=True)
class Record:
    """All that a run folder says, as plain values.

    `num_torn_lines` counts lines that were not whole; `idle_s` is the time since the last line
    was written.
    """

    folder: Path
    manifest: Line = field(default_factory=dict)
    steps: Steps
    evaluations: list[Line]
    checkpoints: list[Line]
    events: list[Line]
    duration_s: float
    num_torn_lines: int
    idle_s: float
    comparison: Line | None = None
    best: Line | None = None


class _Columns:
    """Growing columns of numbers of equal length."""

    def __init__(self) -> None:
        self.step = array("q")
        self.columns = {name: array("d") for name in COLUMNS}
        self.phases_s: dict[str, array[float]] = {}

    def append(self, line: Line) -> None:
        step = int(line["step"])
        self.undo(step - 1)
        for name, column in self.columns.items():
            column.append(number(line.get(name)))
        phases_s = line.get("phases_s")
        for name in phases_s if isinstance(phases_s, dict) else ():
            if name not in self.phases_s:
                self.phases_s[str(name)] = array("d", [math.nan]) * len(self.step)
        for name, column in self.phases_s.items():
            column.append(number(phases_s.get(name)) if isinstance(phases_s, dict) else math.nan)
        self.step.append(step)

    def undo(self, step: int) -> None:
        """Drop what came after `step`: a resumed run did it again."""
        keep = len(self.step)
        while keep and self.step[keep - 1] > step:
            keep -= 1
        if keep < len(self.step):
            del self.step[keep:]
            for column in (*self.columns.values(), *self.phases_s.values()):
                del column[keep:]

    def done(self) -> Steps:
        return Steps(
            step=np.array(self.step, dtype=np.int64),
            columns={name: np.array(c, dtype=float) for name, c in self.columns.items()},
            phases_s={name: np.array(c, dtype=float) for name, c in self.phases_s.items()},
        )


def read_run(folder: Path) -> Record:
    """The run in `folder`.

    Raises: `SpecError` if there is no such folder.
    """
    if not folder.is_dir():
        raise SpecError(
            "run",
            f"no folder {folder}",
            "a run is a folder that `armillary train` made (train/report/reading.py)",
            "give the folder it named, such as runs/weather-20260101-120000",
        )
    metrics = folder / "metrics.jsonl"
    steps, evaluations, checkpoints, events = _Columns(), {}, [], []
    num_torn_lines, before_s, last_s = 0, 0.0, 0.0
    for line in _lines(metrics):
        kind = line.get("kind") if line else None
        if line is None or (kind in ("step", "evaluation") and not _is_count(line.get("step"))):
            num_torn_lines += 1
            continue
        time_s = number(line.get("time_s"))
        if math.isfinite(time_s):
            if time_s + 1e-3 < last_s:  # a resumed run whose clock began anew
                before_s += last_s
            last_s = time_s
        line["time_s"] = before_s + last_s
        if kind == "step":
            steps.append(line)
        elif kind == "evaluation":
            evaluations[(int(line["step"]), str(line.get("split")))] = line
        elif kind == "checkpoint":
            checkpoints.append(line)
        elif kind == "event":
            events.append(line)
            if line.get("what") in ("resumed", "rolled-back") and _is_count(line.get("step")):
                steps.undo(int(line["step"]))
                evaluations = {k: v for k, v in evaluations.items() if k[0] <= int(line["step"])}
    return Record(
        folder=folder,
        manifest=_document(folder / "manifest.json") or {},
        steps=steps.done(),
        evaluations=[evaluations[key] for key in sorted(evaluations)],
        checkpoints=checkpoints,
        events=events,
        duration_s=before_s + last_s,
        num_torn_lines=num_torn_lines,
        idle_s=time.time() - metrics.stat().st_mtime if metrics.is_file() else math.inf,
        comparison=_document(folder / "evaluation.json"),
        best=_document(folder / "checkpoints" / "best.json"),
    )


def sources(folder: Path) -> dict[str, str]:
    """The recipe's files of a run: name -> text."""
    files = [folder / "recipe.py", *sorted((folder / "recipe").glob("*.py"))]
    return {
        str(file.relative_to(folder)): file.read_text(encoding="utf-8", errors="replace")
        for file in files
        if file.is_file()
    }


def number(value: Any) -> float:
    """`value` as a float, NaN if it is none."""
    if type(value) is float:  # by far the most frequent, a million times over
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return math.nan


def table(value: Any) -> dict[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def _lines(path: Path) -> Iterator[Line | None]:
    """The lines of a JSON-lines file; None for one that is not whole."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for raw in file:
            if not raw.strip():
                continue
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                line = None
            yield line if isinstance(line, dict) else None


def _document(path: Path) -> Line | None:
    """A JSON object, or None if the file is absent or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_count(value: Any) -> bool:
    found = number(value)
    return math.isfinite(found) and found >= 0
