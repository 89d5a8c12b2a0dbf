"""Fits the planner's constants to the measured runs in benchmarks/data, and writes them.

    python -m benchmarks.calibrate                # prints errors, writes plan/calibration.toml
    python -m benchmarks.calibrate --dry-run --most 20

The rows are those of quality A of published_runs.csv whose model is a transformer, dense or of
experts, and vtrain_single_node.csv. The number to quote is that of leaving one source out: its rows
are predicted with constants that were fitted on all others.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from armillary.plan import calibration
from armillary.plan.published import Subject, subject
from armillary.plan.runs import read_runs
from armillary.plan.validate import Errors
from armillary.spec import SpecError
from benchmarks.calibration import others
from benchmarks.calibration.constants import CONSTANTS
from benchmarks.calibration.problem import Problem
from benchmarks.calibration.solve import Fitted, fit, intervals, left_out, values_at

DATA = Path(__file__).parent / "data"
OUT = Path(calibration.__file__).with_name(calibration.FILE)
TABLES = {"published_runs.csv": 10**6, "vtrain_single_node.csv": 144}
"""The tables, and how many rows of each source are taken at most."""
KINDS = ("dense-transformer", "moe")
QUOTED = ("dense transformers", "experts")
GROUPS = {"dense transformers": KINDS[:1], "experts": KINDS[1:], "both": KINDS}


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=10**6, help="rows of a source and kind")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dry-run", action="store_true", help="print, and write nothing")
    options = parser.parse_args()
    began = time.perf_counter()
    of_others = others.quoted()  # before messages are kept by row
    problem = Problem.of(_subjects(options.most), CONSTANTS)
    print(f"{len(problem.subjects)} rows, {len(CONSTANTS)} constants")
    fitted = fit(problem, np.zeros(len(CONSTANTS)), options.steps)
    ours = problem.measured_s * np.exp(fitted.errors)
    print("with the constants of all sources")
    _report(problem, ours)
    print("leaving one source out")
    other, places = left_out(problem, fitted)
    quoted = _report(problem, other) | of_others
    _print_others(of_others)
    low, high = intervals(problem, fitted, places)
    _print_constants(problem, fitted, low, high)
    if not options.dry_run:
        OUT.write_text(_toml(problem, fitted, low, high, quoted), encoding="utf-8")
        print(f"wrote {OUT}")
    print(f"{time.perf_counter() - began:.0f} s")


def _subjects(most: int) -> list[Subject]:
    groups: dict[tuple[str, str], list[Subject]] = defaultdict(list)
    for name, limit in TABLES.items():
        runs, _ = read_runs(DATA / name)
        for run in runs:
            if run.quality == "A" and run.step_s and run.kind in KINDS:
                try:
                    found = subject(run, calibrated=False)
                except (SpecError, ValueError) as error:
                    print(f"  skipped {run.id}: {error}")
                    continue
                groups[run.source_group, run.kind].append(found)
        for key, rows in groups.items():
            groups[key] = _spread(rows, min(most, limit))
    return [row for rows in groups.values() for row in rows]


def _spread(rows: Sequence[Subject], most: int) -> list[Subject]:
    if len(rows) <= most:
        return list(rows)
    return [rows[int(i)] for i in np.linspace(0, len(rows) - 1, most)]


def _report(problem: Problem, ours: NDArray[np.float64]) -> dict[str, float]:
    errors = ours / problem.measured_s - 1.0
    kinds = np.array([s.run.kind for s in problem.subjects])
    sources = problem.sources
    for source in sorted(set(sources.tolist())):
        for kind in KINDS:
            chosen = (sources == source) & (kinds == kind) & np.isfinite(errors)
            if chosen.any():
                _print_errors(f"{source} {kind}", Errors.of(errors[chosen].tolist()))
    quoted = {}
    for name, group in GROUPS.items():
        chosen = np.isin(kinds, group) & np.isfinite(errors) & (sources != "vtrain")
        weights = [1.0 / np.sum(sources[chosen] == s) for s in sources[chosen]]
        found = Errors.of(errors[chosen].tolist(), weights)
        _print_errors(f"{name}, sources weighted the same", found)
        if name in QUOTED:
            quoted |= {f"{name}, median": found.median, f"{name}, nine in ten": found.ninetieth}
    return quoted


def _print_errors(name: str, errors: Errors) -> None:
    print(
        f"  {name:<46} {errors.num_rows:4d} rows  median {errors.median:6.1%}  "
        f"p90 {errors.ninetieth:6.1%}  mean {errors.mean:6.1%}  bias {errors.bias:+6.1%}"
    )


def _print_others(quoted: dict[str, float]) -> None:
    median, ninetieth = quoted.values()
    print(f"  convolutional and others, left out: median {median:.1%}, nine in ten {ninetieth:.1%}")


def _print_constants(
    problem: Problem, fitted: Fitted, low: NDArray[np.float64], high: NDArray[np.float64]
) -> None:
    values = values_at(problem, fitted.place)
    for constant, value, least, most in zip(CONSTANTS, values, low, high, strict=True):
        start = f"expected {constant.start:.3g}"
        print(f"  {constant.name:<48} {value:9.4g}  [{least:.3g}, {most:.3g}]  {start}")


def _toml(
    problem: Problem,
    fitted: Fitted,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    quoted: dict[str, float],
) -> str:
    """The calibration as the planner reads it; a constant that no row depends on is left out."""
    lines = [
        f'source = "benchmarks/calibrate.py on benchmarks/data, {date.today()}: '
        f'{len(problem.subjects)} rows of {len(set(problem.sources.tolist()))} sources"',
        "",
        "# Leaving one source out, every source weighted the same.",
        "[errors]",
        *(f'"{name}" = {value:.4f}' for name, value in quoted.items()),
    ]
    values = values_at(problem, fitted.place)
    for index, constant in enumerate(CONSTANTS):
        rows = [row for row, used in enumerate(problem.affects) if index in used]
        if not rows:
            continue
        sources = sorted({str(problem.sources[row]) for row in rows})
        lines += [
            "",
            "[[constants]]",
            f'name = "{constant.name}"',
            f'field = "{constant.field}"',
            f"value = {values[index]:.4g}",
            f"low = {low[index]:.4g}",
            f"high = {high[index]:.4g}",
            f"software = {_words(constant.software)}",
            f"devices = {_words(constant.devices)}",
            f"num_rows = {len(rows)}",
            f"sources = {_words(sources)}",
        ]
    return "\n".join(lines) + "\n"


def _words(words: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


if __name__ == "__main__":
    main()
