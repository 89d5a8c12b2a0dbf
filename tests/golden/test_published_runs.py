"""Measured runs and what the plan says of them: theirs, ours and the difference.

The constants of the plan are fitted on most of these runs (plan/calibration.toml), so that the
bounds here guard against getting worse; how far to trust a plan of something new is in docs/plan.md
(leaving one source out).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from armillary.plan.calibration import load
from armillary.plan.validate import Compared, Validation, validate
from benchmarks.calibration.constants import CONSTANTS

DATA = Path(__file__).parents[2] / "benchmarks" / "data"


@cache
def of(name: str) -> Validation:
    return validate(DATA / name)


def table(rows: Sequence[Compared]) -> str:
    """Theirs, ours, delta."""
    lines = [f"{'run':<28} {'published':>10} {'ours':>10} {'delta':>7}"]
    lines += [
        f"{c.run.id:<28.28} {c.run.step_s:>8.2f} s {c.step_s:>8.2f} s {c.step_error:>+7.1%}"
        for c in rows
    ]
    return "\n".join(lines)


def test_the_eight_points_of_korthikanti() -> None:
    """Korthikanti et al. 2022, arXiv 2205.05198, table 5: six of them are among the fitted runs."""
    found = of("megatron_validation.csv")
    print(table(found.compared))
    assert len(found.compared) == 8 and not found.skipped
    assert max(abs(c.step_error) for c in found.compared) < 0.06, table(found.compared)
    assert found.errors(lambda c: c.step_error).mean < 0.03, table(found.compared)


def test_the_constants_are_those_of_the_script() -> None:
    """benchmarks/calibrate.py wrote them: every one that a run depends on, inside its interval."""
    written = {c.name: c for c in load().constants}
    fitted = {c.name: c for c in CONSTANTS}
    assert set(written) <= set(fitted)
    for name, constant in written.items():
        mine = fitted[name]
        assert (constant.field, constant.software, constant.devices) == (
            mine.field,
            mine.software,
            mine.devices,
        ), name
        assert constant.low < constant.value < constant.high, name
        assert constant.num_rows and constant.sources, name
    assert load().errors, "the errors of leaving one source out stand beside them"


@pytest.mark.slow
def test_vtrain_on_one_node() -> None:
    """Bang et al. 2024, arXiv 2312.12391: half of 1,440 runs, a fifth of them fitted."""
    found = of("vtrain_single_node.csv")
    assert len(found.compared) == 720
    assert found.errors(lambda c: c.step_error).mean < 0.07
    apart = [r.tau_apart for r in found.ranked]
    assert sorted(apart)[len(apart) // 2] >= 0.8


@pytest.mark.slow
def test_published_runs() -> None:
    found = of("published_runs.csv")
    for (source, kind), errors in found.by_group(lambda c: c.step_error).items():
        print(f"{source:<16} {kind:<18} {errors.num_rows:4d} median {errors.median:6.1%}")
    dense = found.errors(lambda c: c.step_error, ("dense-transformer",))
    assert dense.num_rows > 450 and dense.median < 0.08 and dense.ninetieth < 0.2
    assert found.errors(lambda c: c.step_error, ("moe",)).median < 0.1
    memory = found.errors(lambda c: c.memory_error)
    assert memory.num_rows > 200 and memory.median < 0.1 and memory.ninetieth < 0.25
    right, number = found.told_rightly
    assert right / number >= 0.95
    assert sorted(r.regret for r in found.ranked)[len(found.ranked) // 2] <= 0.02


@pytest.mark.slow
def test_what_schedules_keep() -> None:
    """Qi et al. 2023, arXiv 2401.10241, table 4: the peak of 1F1B, interleaved and zero bubble.

    Nothing of memory is fitted.
    """
    found = [c for c in of("published_runs.csv").compared if c.run.source_group == "zerobubble"]
    assert len(found) == 36
    assert max(abs(c.memory_error) for c in found) < 0.05
