"""Rehearsals beside measured runs and beside the plan: `python -m benchmarks.rehearsals`.

Every published run whose step was measured is priced by the plan and played by the rehearsal, both
with the same constants; errors are ours / theirs - 1. Nothing is fitted here.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np

from armillary.core.compute import slowest_of
from armillary.plan.published import subject
from armillary.plan.runs import Run, read_runs
from armillary.plan.validate import compare
from armillary.plan.workload import workload_of
from armillary.rehearse.congestion import Congestion
from armillary.rehearse.links import Links
from armillary.rehearse.periods import step_of
from armillary.spec import SpecError

RUNS = Path(__file__).with_name("data") / "published_runs.csv"
RESULTS = Path(__file__).with_name("results") / "rehearsals.json"


@dataclass(frozen=True, slots=True)
class Row:
    """A run: seconds of its step as measured, planned and rehearsed, and how long that took."""

    id: str
    source: str
    schedule: str
    measured_step_s: float
    planned_step_s: float
    rehearsed_step_s: float
    num_devices: int
    is_pipelined: bool
    has_one_adapter: bool
    is_cut_across_nodes: bool
    played_s: float

    @property
    def planned_error(self) -> float:
        return self.planned_step_s / self.measured_step_s - 1.0

    @property
    def rehearsed_error(self) -> float:
        return self.rehearsed_step_s / self.measured_step_s - 1.0


def row_of(run: Run) -> Row:
    """One run, priced and played.

    Raises: `SpecError` or `ValueError` where it cannot be.
    """
    what = subject(run)
    planned = compare(what).step_s
    load = workload_of(what.graph, what.machine, what.software, what.grid, what.global_batch_size)
    started_s = time.perf_counter()
    congestion = Congestion(machine=what.machine, num_ranks=prod(load.degrees.values()))
    links = Links(what.machine, load.degrees, congestion=congestion)
    rehearsed, _, _ = step_of(load, links)
    played_s = time.perf_counter() - started_s
    if load.spread:  # the mean of the largest of n replicas, as the plan has it
        busy_s = (
            sum(
                one.forward_s + one.backward_input_s + one.backward_weight_s + one.again_s
                for one in load.stages
            )
            * load.num_micro_batches
        )
        replicas = float(np.prod([load.degrees[a] for a in load.batch_axes]))
        rehearsed += busy_s * float(slowest_of(replicas, load.spread))
    per_node = run.gpus_per_node or 8
    return Row(
        id=run.id,
        source=run.source_group,
        schedule=run.schedule if run.pipeline > 1 else "",
        measured_step_s=run.step_s,
        planned_step_s=planned,
        rehearsed_step_s=rehearsed,
        num_devices=run.num_devices,
        is_pipelined=run.pipeline > 1,
        has_one_adapter="1x100Gb" in run.machine and run.num_devices > per_node,
        is_cut_across_nodes=max(run.tensor, 1) * max(run.sequence, 1) > per_node,
        played_s=played_s,
    )


def rows(path: Path, sources: Sequence[str] = ()) -> tuple[list[Row], int]:
    """All rows of quality A that can be priced and played, and how many cannot be played."""
    found, left_out = [], 0
    for run in read_runs(path)[0]:
        if (run.quality or "A") != "A" or not run.step_s:
            continue
        if sources and run.source_group not in sources:
            continue
        try:
            found.append(row_of(run))
        except (SpecError, ValueError):
            left_out += 1
    return found, left_out


def told(name: str, some: Sequence[Row]) -> str:
    """A line of the table: the medians and nine tenths of both."""
    plan = np.abs([one.planned_error for one in some])
    own = np.abs([one.rehearsed_error for one in some])
    bias = np.median([one.rehearsed_error for one in some])
    better = int(np.sum(own < plan - 1e-3)), int(np.sum(plan < own - 1e-3))
    return (
        f"| {name} | {len(some)} | {100 * np.median(plan):.1f} % | {100 * np.median(own):.1f} % | "
        f"{100 * np.quantile(plan, 0.9):.1f} % | {100 * np.quantile(own, 0.9):.1f} % | "
        f"{100 * bias:+.1f} % | {better[0]} / {better[1]} |"
    )


def table(found: Sequence[Row]) -> str:
    """The table of all sets of rows."""
    sets: dict[str, Callable[[Row], bool]] = {
        "all": lambda one: True,
        "with a pipeline": lambda one: one.is_pipelined,
        "the same but for bigscience": lambda one: one.is_pipelined and one.source != "bigscience",
        "one adapter a node": lambda one: one.has_one_adapter,
        "a sample cut across nodes": lambda one: one.is_cut_across_nodes,
        "more than 8 devices": lambda one: one.num_devices > 8,
    }
    lines = [
        "| rows | number | plan, median | rehearsed, median | plan, 90 % | rehearsed, 90 % | "
        "rehearsed, bias | nearer: rehearsed / plan |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [told(name, some) for name, fits in sets.items() if (some := [*filter(fits, found)])]
    by_source: dict[str, list[Row]] = defaultdict(list)
    for one in found:
        if one.is_pipelined:
            by_source[f"{one.source}, {one.schedule}"].append(one)
    lines += [told(name, some) for name, some in sorted(by_source.items())]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--sources", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    found, left_out = rows(given.runs, given.sources)
    print(table(found))
    slowest = max(found, key=lambda one: one.played_s)
    print(
        f"\n{len(found)} rows, {left_out} left out; played in "
        f"{sum(one.played_s for one in found):.1f} s, the slowest {slowest.id} in "
        f"{slowest.played_s:.2f} s"
    )
    if given.out:
        given.out.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
