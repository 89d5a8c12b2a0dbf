"""A run that hangs, jumps, waits for one rank or finds no memory: seen, said, and got over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from armillary.spec import SpecError, TrainSettings
from tests.fault.door import (
    TROUBLE,
    finish,
    only_run,
    ranks_of,
    result,
    start,
    steps_done,
    wait_for,
)
from tests.parity.runs import Bench, Result

NOT_FINITE = 3
HANG = ("--set", "hang_least_s=1.5", "--set", "hang_steps=5", "--set", "pause_s=0.05")


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    path = tmp_path / "flag"
    path.touch()
    return path


@pytest.mark.slow
def test_a_hang_leaves_every_stack_and_the_run_goes_on(bench: Bench, tmp_path: Path) -> None:
    runs, flag = tmp_path / "runs", tmp_path / "flag"
    words = ("--runs", str(runs), "--set", "trouble=hang", "--set", f"flag={flag}", *HANG)
    process = start("train", TROUBLE, "--layout", "data=2", *words)
    wait_for(lambda: steps_done(runs) >= 4, process)
    flag.touch()
    exit_code, said = finish(process)
    assert exit_code == 0, said
    assert said.count("no progress for") >= 2 and "starting the ranks again" in said
    [restarted] = result(runs).events("restarted")
    assert "in data" in restarted, "the phase of the rank that hung"
    stacks = [path.read_text() for path in sorted((only_run(runs) / "stacks").glob("*.txt"))]
    assert len(stacks) == 2
    assert sum("__getitem__" in text for text in stacks) == 1, "the stack of the rank that hung"
    assert result(runs).losses == bench.train(TROUBLE, "data=2").losses


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_ended_and_started_again(bench: Bench, tmp_path: Path) -> None:
    """A process that is frozen does nothing, not even see that it is told to leave."""
    process = start("train", TROUBLE, "--layout", "data=2", "--runs", str(tmp_path), *HANG)
    wait_for(lambda: steps_done(tmp_path) >= 4, process)
    os.kill(ranks_of(process)[1], signal.SIGSTOP)
    exit_code, said = finish(process)
    assert exit_code == 0, said
    assert "rank 0: no progress for" in said and "starting the ranks again" in said
    assert result(tmp_path).losses == bench.train(TROUBLE, "data=2").losses


STUCK = """
import ctypes, sys, time
from armillary.train.survive.watch import Watch

watch = Watch(rank=3, hang_steps=5, least_s=0.5, ends=True)
with watch.watching(None):
    for step in range(1, 6):
        time.sleep(0.02)
        watch.stepped(step, 0.02)
    time.sleep(0.3)  # for its thread to look
    watch.tick("the end", float("inf") if sys.argv[1] == "allowed" else 0.0)
    ctypes.PyDLL(None).sleep(20) if sys.argv[1] == "in C" else time.sleep(2)
"""


@pytest.mark.parametrize(("how", "exit_code"), [("asleep", 71), ("in C", 1), ("allowed", 0)])
def test_what_hangs_is_ended_whatever_it_hangs_in(how: str, exit_code: int) -> None:
    """Code in C that keeps the interpreter to itself stops every thread of it."""
    done = subprocess.run([sys.executable, "-c", STUCK, how], capture_output=True, text=True)
    assert done.returncode == exit_code, done.stderr
    assert ("most recent call first" in done.stderr) == (exit_code != 0)


@pytest.mark.parametrize("layout", ["", "data=2"])
def test_a_batch_that_is_not_finite_is_skipped_as_often_as_allowed(
    bench: Bench, flag: Path, layout: str
) -> None:
    """The sample comes once in each of three epochs."""
    words = {"trouble": "nan", "flag": flag}
    ours = bench.train(TROUBLE, layout, **words, skip_batches=3)
    assert ours.exit_code == 0
    skipped = ours.events("skipped")
    assert len(skipped) == 3 and all("37" in message for message in skipped)
    assert len(ours.losses) == 24 - 3
    stopped = bench.train(TROUBLE, layout, **words, skip_batches=2)
    assert stopped.exit_code == NOT_FINITE and len(stopped.events("skipped")) == 2
    again = bench.resume(stopped.path, skip_batches=3)
    assert again.exit_code == 0 and again.losses == ours.losses
    parameters = again.parameters()
    assert all(torch.equal(parameters[n], t) for n, t in ours.parameters().items())


def test_a_jump_of_the_loss_is_skipped(bench: Bench, flag: Path) -> None:
    """In the third epoch, when enough losses are known to measure it against."""
    words = {"trouble": "spike", "flag": flag, "skip_batches": 2}
    ours = bench.train(TROUBLE, "", **words, spike_deviations=20)
    [skipped] = ours.events("skipped")
    assert "above" in skipped and "37" in skipped and max(ours.losses) < 100
    assert max(bench.train(TROUBLE, "", **words).losses) > 1000, "else it is learned from"


def test_parameters_that_went_bad_are_rolled_back_and_the_batch_is_taken_out(
    tmp_path: Path,
) -> None:
    """sqrt at 0 has a finite loss and an infinite gradient, and only the next step would see it."""
    from armillary.train.launch import train as train_here
    from armillary.train.request import new_request

    case = tmp_path / "root.py"
    case.write_text(
        "import torch\n"
        "from torch import nn\n"
        "settings = {'epochs': 2, 'global_batch_size': 4, 'checkpoint_every_steps': 1}\n"
        "def model(): return nn.Linear(2, 1, bias=False)\n"
        "def data():\n"
        "    rows = [torch.ones(2) * (i != 5) for i in range(16)]\n"
        "    return {'train': rows, 'validation': rows[:2]}\n"
        "def loss(model, batch): return model(batch).abs().sqrt().mean()\n"
        "def optimizer(params): return torch.optim.SGD(params, lr=1e-3)\n"
    )
    words = {"shuffle": "false", "skip_batches": "2"}
    request = new_request(str(case), runs=tmp_path, trackers=(), quiet=True, assignments=words)
    outcome = train_here(request)
    ours = Result(outcome.run_path)
    assert outcome.exit_code == 0, outcome.message
    rolled_back = ours.events("rolled-back")
    assert [text.rpartition(": ")[2] for text in rolled_back] == [
        "epoch 0 position 4",
        "epoch 1 position 4",
    ]
    assert (outcome.run_path / "skipped.json").read_text() == "[[0, 4], [1, 4]]\n"
    assert all(tensor.isfinite().all() for tensor in ours.parameters().values())
    assert len(ours.losses) == 8 - 2


def test_a_slow_rank_is_named_with_its_phase(bench: Bench) -> None:
    ours = bench.train(TROUBLE, "data=2", epochs=7, trouble="slow")
    [said, *_] = ours.events("straggler")
    assert said.startswith("rank 1 takes") and "in data" in said


def test_who_is_slow_and_who_only_waits() -> None:
    from armillary.train.survive.stragglers import slow_ranks

    even = [[1.0, 2.0, 3.0, 0.1, 0.5]] * 4
    assert slow_ranks(even) == []
    waits = [[1.0, 2.0, 3.0, 2.1, 0.5]] * 3
    [said] = slow_ranks([*waits, [1.0, 4.0, 3.0, 0.1, 0.5]])
    assert said.startswith("rank 3 takes 2e+03 ms") and "in forward" in said
    assert slow_ranks([*waits, [1.0, 2.0, 3.0, 0.1, 0.5]]) == [], "three of four: a wait"


def test_no_memory_names_the_term_and_a_layout_that_needs_less(tmp_path: Path) -> None:
    from armillary.train.launch import train as train_here
    from armillary.train.request import new_request

    case = tmp_path / "large.py"
    case.write_text(
        "import torch\n"
        "from torch import nn\n"
        "def model(): return nn.Linear(4, 1)\n"
        "def data(): return {'train': [torch.ones(4)] * 8, 'validation': [torch.ones(4)] * 2}\n"
        "def loss(model, batch): return model(batch).mean() + torch.zeros(2**50).sum()\n"
        "def optimizer(params): return torch.optim.SGD(params, lr=1e-3)\n"
    )
    request = new_request(str(case), runs=tmp_path, trackers=(), quiet=True)
    with pytest.raises(SpecError) as refused:
        train_here(request)
    error = refused.value
    assert error.where == "memory" and "allocate" in error.found
    assert "parameters" in error.found and "activations" in error.rule
    assert "recompute=full" in error.fix and "precision=bfloat16" in error.fix


def test_the_advice_names_axes_that_admit_the_model(tmp_path: Path) -> None:
    """A model without experts is not told to share them out."""
    from armillary.train.request import new_request
    from armillary.train.survive import memory

    plain, experts = (new_request(name, runs=tmp_path) for name in (TROUBLE, "moe"))
    assert memory._less("parameters", plain) == ["sharded=2", "tensor=2"]
    assert {"expert=2", "sharded=2", "tensor=2"} <= {*memory._less("parameters", experts)}
    assert "sequence=2" not in memory._less("activations and the rest", plain)


def test_the_clock_says_when_to_save() -> None:
    """As told; by Daly where failures are known; never faster than it can be written."""
    from armillary.core.failures import daly_interval_s
    from armillary.train.checkpoints.cadence import Cadence

    assert not Cadence(TrainSettings()).is_due()
    assert Cadence(TrainSettings(checkpoint_every_s=7.0)).interval_s == 7.0
    cadence = Cadence(TrainSettings(hours_between_failures=3.0))
    assert cadence.interval_s <= 3600.0
    cadence.began(0.4)
    assert cadence.written(5.0)
    assert cadence.interval_s == pytest.approx(float(daly_interval_s(0.4, 3 * 3600.0)))
    assert not cadence.written(500.0)
    assert cadence.interval_s == 500.0


def test_checkpoints_come_by_the_clock(bench: Bench) -> None:
    ours = bench.train(
        TROUBLE, "data=2", pause_s=0.05, checkpoint_every_s=0.2, checkpoint_every_steps=0
    )
    saves = [line["step"] for line in ours.lines if line["kind"] == "checkpoint"]
    assert len(saves) > 5, saves
    assert ours.events("cadence") == ["a checkpoint every 0.2 s, as told"]


def test_two_runs_do_not_write_to_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from armillary.train.folder import lock

    monkeypatch.setattr(lock, "WAIT_S", 0.1)
    with (
        lock.only_writer(tmp_path),
        pytest.raises(SpecError, match=f"process {os.getpid()}"),
        lock.only_writer(tmp_path),
    ):
        pass
    with lock.only_writer(tmp_path):
        pass


@pytest.mark.parametrize(
    ("layout", "num_ranks", "wanted"),
    [
        ("data=4", 3, "data=3"),
        ("data=4", 1, ""),
        ("", 2, "data=2"),
        ("data=2,tensor=2", 2, "tensor=2"),
        ("data=2,tensor=4", 4, "tensor=4"),
        ("data=2,sharded=4", 4, "sharded=4"),
        ("data=2,sharded=4", 16, "data=4,sharded=4"),
        ("sharded=4", 3, "sharded=3"),
        ("tensor=4", 2, "tensor=2"),
        ("data=2,pipeline=2,pipeline.schedule=gpipe", 6, "data=3,pipeline=2"),
        ("data=2,tensor=2,precision=bfloat16,micro_batch_size=4", 8, "data=4,tensor=2"),
    ],
)
def test_a_layout_for_other_ranks_changes_the_batch_first(
    layout: str, num_ranks: int, wanted: str
) -> None:
    from armillary.spec import Layout
    from armillary.train.start.replan import candidates

    before = Layout.parse(layout)
    first = next(candidates(before, num_ranks))
    assert first.degrees == Layout.parse(wanted).degrees
    assert (first.precision, first.micro_batch_size) == (before.precision, before.micro_batch_size)
    assert all(one.num_ranks == num_ranks for one in candidates(before, num_ranks))
