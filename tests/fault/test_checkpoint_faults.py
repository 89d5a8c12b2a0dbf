"""Checkpoints that are torn, damaged, or have no room: the one before is whole, and is taken."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.door import TROUBLE, only_run, steps_done, train
from tests.parity.runs import Bench, Result

BAD_INPUT = 2
NUM_KILLS = 8


@pytest.fixture(scope="module")
def whole(bench: Bench) -> Result:
    return bench.train(TROUBLE, "data=2")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (_flip, "*.distcp"),
        (_truncate, "*.distcp"),
        (_flip, "shards.json"),
        (_truncate, "complete.json"),
        (Path.unlink, "__1_0.distcp"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    bench: Bench,
    whole: Result,
    damage,
    pattern: str,  # type: ignore[no-untyped-def]
) -> None:
    stopped = bench.train(TROUBLE, "data=2", stop_after=6)
    newest = max(stopped.folder.checkpoints.glob("step-*"))
    assert newest.name == "step-00000007"
    damage(next(iter(sorted(newest.glob(pattern)))))
    resumed = bench.resume(stopped.path)
    [message] = resumed.events("fallback")
    assert "step-00000007 passed over" in message
    assert "after step 6" in resumed.events("resumed")[0]
    assert resumed.losses == whole.losses


def test_no_checkpoint_at_all_is_told(bench: Bench) -> None:
    import shutil

    stopped = bench.train(TROUBLE, "", stop_after=3)
    shutil.rmtree(stopped.folder.checkpoints)
    exit_code, said = train("--resume", str(stopped.path))
    assert exit_code == BAD_INPUT
    assert "start a new run" in said and "Traceback" not in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where mounting is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs rights")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("layout", ["data=1", "data=2"])
def test_a_full_disk_is_told_and_what_was_saved_goes_on(
    bench: Bench, small_disk: Path, layout: str
) -> None:
    """Checkpoints of 250 KB: the first ones fit beside a file of somebody else, then no more."""
    filler = small_disk / "somebody-elses"
    filler.write_bytes(bytes(600_000))
    runs = small_disk / "runs"
    exit_code, said = train(
        TROUBLE,
        "--layout",
        layout,
        "--runs",
        str(runs),
        "-q",
        "--set",
        "width=3000",
        "--set",
        "keep_checkpoints=3",
    )
    assert exit_code == BAD_INPUT, said
    assert "No space left on device" in said and "--resume" in said, said
    assert said.count("  rule  ") == 1 and "Traceback" not in said, said
    assert steps_done(runs) >= 2
    filler.unlink()
    resumed = bench.resume(only_run(runs), keep_checkpoints=1)
    assert resumed.losses == bench.train(TROUBLE, layout, width=3000).losses


def _train_with_small_files(runs: str) -> int:
    from armillary.spec import SpecError
    from armillary.train.launch import train as train_here
    from armillary.train.request import new_request

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    request = new_request(
        TROUBLE, runs=Path(runs), quiet=True, trackers=(), assignments={"width": "30000"}
    )
    try:
        train_here(request)
    except SpecError as error:
        return BAD_INPUT if "File too large" in error.found else 1
    return 0


def test_a_limit_on_file_size_is_told(tmp_path: Path) -> None:
    """The same without rights to mount: a quota of 100 KB a file."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_train_with_small_files, (str(tmp_path),)) == BAD_INPUT
    assert list(tmp_path.glob("*/checkpoints/step-*")) == []


def _save_for_ever(folder: str) -> None:
    import torch

    from armillary.step.world import World
    from armillary.train.checkpoints.checkpoint import Checkpoints

    world = World(
        rank=0, num_ranks=1, device=torch.device("cpu"), mesh=None, batch_index=0, batch_count=1
    )
    checkpoints = Checkpoints(Path(folder), world, keep=2)
    values = torch.zeros(500_000)
    for step in range(1, 10_000):
        values.fill_(float(step))
        checkpoints.save(step, {"values": values, "step": step}, {"value": float(step)})


def test_a_kill_at_any_moment_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """Killed while it does nothing but save; the newest whole one holds what its name says."""
    import torch

    from armillary.train.checkpoints.saved import checkpoint_path, load, newest_whole, saved_steps

    moments = random.Random(0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["armillary.train.checkpoints.checkpoint"])
    for i in range(NUM_KILLS):
        folder = tmp_path / str(i)
        process = context.Process(target=_save_for_ever, args=(str(folder),))
        process.start()
        while not folder.is_dir() or len(saved_steps(folder)) < 2:
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.1))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        step, passed_over = newest_whole(folder)
        assert passed_over == [], "what has its name is whole"
        state = {"values": torch.zeros(500_000), "step": 0}
        load(checkpoint_path(folder, step), state, serial=True)
        assert state["step"] == step and bool((state["values"] == step).all())


def test_saving_the_same_step_again_puts_nothing_at_risk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run may save the step it began from: the whole one stays in its place."""
    import torch

    from armillary.step.world import World
    from armillary.train.checkpoints.checkpoint import Checkpoints
    from armillary.train.checkpoints.saved import checkpoint_path, find_fault

    world = World(
        rank=0, num_ranks=1, device=torch.device("cpu"), mesh=None, batch_index=0, batch_count=1
    )
    checkpoints = Checkpoints(tmp_path, world, keep=2)
    checkpoints.save(3, {"values": torch.ones(9)})
    checkpoints.finish()
    path = checkpoint_path(tmp_path, 3)
    before = path.stat().st_ino
    checkpoints.save(3, {"values": torch.ones(9)}, {"value": 1.0})
    checkpoints.finish()
    assert path.stat().st_ino == before and find_fault(path) is None
    assert [entry.name for entry in tmp_path.glob(".step-*")] == []
    next(path.glob("*.distcp")).write_bytes(b"")
    checkpoints.save(3, {"values": torch.ones(9)})
    checkpoints.finish()
    assert find_fault(path) is None, "a damaged one is replaced"


def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path) -> None:
    """Training goes on in the same memory while the state is written."""
    import torch

    from armillary.step.world import World
    from armillary.train.checkpoints.checkpoint import Checkpoints
    from armillary.train.checkpoints.saved import checkpoint_path, load

    world = World(
        rank=0, num_ranks=1, device=torch.device("cpu"), mesh=None, batch_index=0, batch_count=1
    )
    checkpoints = Checkpoints(tmp_path, world, keep=2)
    values = torch.ones(3_000_000)
    checkpoints.save(1, {"values": values})
    values.fill_(2.0)
    checkpoints.finish()
    state = {"values": torch.zeros(3_000_000)}
    load(checkpoint_path(tmp_path, 1), state, serial=True)
    assert bool((state["values"] == 1.0).all())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_metrics_that_find_no_room_are_told(tmp_path: Path) -> None:
    from armillary.spec import SpecError
    from armillary.train.folder.run_folder import RunFolder

    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    folder = RunFolder(tmp_path)
    with pytest.raises(SpecError, match="No space left on device"):
        folder.append({"kind": "event"})
    folder.close()
