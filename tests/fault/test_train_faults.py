"""A run that is told to stop, loses a rank, or meets a loss that is not finite: nothing is lost."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fault.door import (
    TROUBLE,
    only_run,
    ranks_of,
    result,
    start,
    steps_done,
    train,
    wait_for,
)
from tests.fault.door import finish as finished
from tests.parity.runs import Bench, Result

NOT_FINITE, INTERRUPTED, CRASHED = 3, 75, 1
NUM_STEPS = 24


@pytest.fixture(scope="module")
def whole(bench: Bench) -> "Whole":
    return Whole(bench)


class Whole:
    """The run that nothing happened to, by layout; and the rest of a run that was stopped."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.known: dict[str, Result] = {}

    def __call__(self, layout: str) -> Result:
        if layout not in self.known:
            self.known[layout] = self.bench.train(TROUBLE, layout)
        return self.known[layout]


def assert_goes_on(runs: Path, layout: str, whole: Whole) -> None:
    """The run in `runs` resumes and ends with the very bits of the whole run."""
    assert whole.bench.resume(only_run(runs)).exit_code == 0
    assert_equal(result(runs), whole(layout))


def assert_equal(ours: Result, whole: Result) -> None:
    assert ours.losses == whole.losses
    parameters = ours.parameters()
    assert all(torch.equal(parameters[n], t) for n, t in whole.parameters().items())


@pytest.fixture
def flag(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "flag"
    path.touch()
    yield path


@pytest.mark.parametrize("layout", ["data=1", "data=2"])
def test_a_nan_stops_the_run_and_names_the_samples(
    tmp_path: Path, flag: Path, layout: str, whole: Whole
) -> None:
    runs = tmp_path / "runs"
    words = ("--set", "trouble=nan", "--set", f"flag={flag}")
    exit_code, said = train(TROUBLE, "--layout", layout, "--runs", str(runs), *words)
    assert exit_code == NOT_FINITE, said
    [message] = result(runs).events("nan")
    assert message in said.replace("\n", "")
    named = message.rpartition("samples ")[2].split(", ")
    assert len(named) == 8 and "37" in named
    assert steps_done(runs) == len(result(runs).losses), "the state before it is saved"
    again = whole.bench.resume(only_run(runs))
    assert again.exit_code == NOT_FINITE, "the same batch, the same loss"
    flag.unlink()
    assert_goes_on(runs, layout, whole)


def test_a_nan_in_the_first_step_leaves_a_state_to_go_on_from(tmp_path: Path, flag: Path) -> None:
    runs = tmp_path / "runs"
    words = ("--set", "trouble=nan", "--set", f"flag={flag}", "--set", "global_batch_size=64")
    exit_code, said = train(TROUBLE, "--runs", str(runs), *words)
    assert exit_code == NOT_FINITE, said
    assert steps_done(runs) == 0
    flag.unlink()
    exit_code, said = train("--resume", str(only_run(runs)))
    assert exit_code == 0, said
    assert len(result(runs).losses) == 3


def _signal(process: "object", name: str, target: str) -> None:
    pid = process.pid if target == "parent" else ranks_of(process)[-1]  # type: ignore[attr-defined, arg-type]
    os.kill(pid, getattr(signal, name))


@pytest.mark.parametrize(
    ("layout", "name", "target"),
    [
        ("data=1", "SIGINT", "parent"),
        ("data=2", "SIGTERM", "parent"),
        ("data=2", "SIGINT", "group"),
        ("data=2", "SIGTERM", "group"),
        ("sharded=2", "SIGUSR1", "rank"),
    ],
)
def test_a_signal_saves_and_leaves(
    tmp_path: Path, layout: str, name: str, target: str, whole: Whole
) -> None:
    """Ctrl-C reaches the whole process group, with the workers that read samples; a batch system
    the parent or any rank.
    """
    words = ["--set", "pause_s=0.15", "--set", f"num_workers={int(target == 'group')}"]
    process = start("train", TROUBLE, "--layout", layout, "--runs", str(tmp_path), *words)
    wait_for(lambda: steps_done(tmp_path) >= 2, process)
    if target == "group":
        os.killpg(process.pid, getattr(signal, name))
    else:
        _signal(process, name, target)
    told_s = time.monotonic()
    exit_code, said = finished(process)
    assert exit_code == INTERRUPTED, said
    assert time.monotonic() - told_s < 15.0
    assert "Traceback" not in said and "elastic" not in said
    assert said.count("--resume") == 2, "in the log, and at the end"
    done = steps_done(tmp_path)
    assert 2 <= done < NUM_STEPS
    assert done == len(result(tmp_path).losses), "saved where it stopped"
    assert_goes_on(tmp_path, layout, whole)


def test_a_killed_rank_ends_the_others_within_seconds_where_none_is_to_restart(
    tmp_path: Path, whole: Whole
) -> None:
    words = ("--set", "pause_s=0.15", "--set", "restarts=0")
    process = start("train", TROUBLE, "--layout", "sharded=2", "--runs", str(tmp_path), *words)
    wait_for(lambda: steps_done(tmp_path) >= 4, process)
    os.kill(ranks_of(process)[0], signal.SIGKILL)
    killed_s = time.monotonic()
    exit_code, said = finished(process)
    assert time.monotonic() - killed_s < 10.0
    assert exit_code == CRASHED, said
    assert said.count("SIGKILL") == 1 and "rank 0" in said and "--resume" in said
    assert "Traceback" not in said
    assert steps_done(tmp_path) >= 4
    assert_goes_on(tmp_path, "sharded=2", whole)


def test_a_killed_rank_is_started_again_with_no_hand(tmp_path: Path, whole: Whole) -> None:
    words = ("--runs", str(tmp_path), "--set", "pause_s=0.1")
    process = start("train", TROUBLE, "--layout", "data=2", *words)
    wait_for(lambda: steps_done(tmp_path) >= 4, process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    exit_code, said = finished(process)
    assert exit_code == 0, said
    assert "rank 1 killed by SIGKILL; starting the ranks again" in said
    assert "Traceback" not in said
    [restarted] = result(tmp_path).events("restarted")
    assert "SIGKILL" in restarted
    assert_equal(result(tmp_path), whole("data=2"))


def test_a_failing_rank_is_told_once_with_its_rank(tmp_path: Path, flag: Path) -> None:
    """The sample falls to one rank; the other only loses its peer."""
    exit_code, said = train(
        TROUBLE,
        "--layout",
        "data=2",
        "--runs",
        str(tmp_path / "runs"),
        "--set",
        "trouble=broken",
        "--set",
        f"flag={flag}",
    )
    assert exit_code == CRASHED
    assert said.count("Traceback (most recent call last)") == 1, said
    assert said.count("sample 37 cannot be read") == 1
    assert "rank 0 failed" in said or "rank 1 failed" in said


def test_gradients_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sqrt at 0 has a finite loss, an infinite gradient: the last sound state stays the newest."""
    from armillary.train.launch import train as train_here
    from armillary.train.request import new_request

    case = tmp_path / "root.py"
    case.write_text(
        "import torch\n"
        "from torch import nn\n"
        "settings = {'epochs': 2, 'global_batch_size': 4, 'checkpoint_every_steps': 1}\n"
        "def model(): return nn.Linear(2, 1, bias=False)\n"
        "def data():\n"
        "    rows = [torch.ones(2) * (i != 5) for i in range(8)]\n"
        "    return {'train': rows, 'validation': rows[:2]}\n"
        "def loss(model, batch): return model(batch).abs().sqrt().mean()\n"
        "def optimizer(params): return torch.optim.SGD(params, lr=1e-3)\n"
    )
    request = new_request(
        str(case), runs=tmp_path, trackers=(), quiet=True, assignments={"shuffle": "false"}
    )
    outcome = train_here(request)
    assert outcome.exit_code == NOT_FINITE
    assert "step 1" in outcome.message and steps_done(tmp_path) == 1
    assert all(t.isfinite().all() for t in Result(outcome.run_path).parameters().values())


def test_a_signal_while_ranks_start_ends_them_too(tmp_path: Path) -> None:
    process = start("train", TROUBLE, "--layout", "data=2", "--runs", str(tmp_path))
    wait_for(lambda: any(tmp_path.iterdir()), process)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGTERM)
    told_s = time.monotonic()
    exit_code, said = finished(process)
    assert time.monotonic() - told_s < 15.0
    assert exit_code == INTERRUPTED, said
    assert "Traceback" not in said and "interrupted" in said
