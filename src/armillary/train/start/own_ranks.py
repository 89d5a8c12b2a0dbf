"""Ranks of our own on this host: started with torch's elastic agent, and again when one is lost."""

import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from armillary.step.workers import let_through
from armillary.train.checkpoints.saved import saved_steps
from armillary.train.launchers.address import LOCAL_ADDRESS
from armillary.train.outcome import INTERRUPTED, Outcome
from armillary.train.rank import train_rank
from armillary.train.request import TrainRequest
from armillary.train.start.warm import loopback, warm_up
from armillary.train.survive.failure import RankError, first_error, leave_error
from armillary.train.survive.stop import STOPPING
from armillary.train.survive.watch import hang_in_words, is_alive

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

SHUTDOWN_TIMEOUT_S = 60
SURVIVORS_LEAVE_S = 10.0
"""How long ranks have to leave by themselves once one was killed: they see it when they next meet,
but for one that is stopped, or waits inside a device."""
OUTCOME, TOLD, RANKS = "outcome.json", "told-to-stop", "ranks"


def train_on_own_ranks(request: TrainRequest) -> Outcome:
    """Start the layout's ranks on this host and wait for them; again, if ranks are lost.

    A run that has got on since its last start is started again however often; one that has not, as
    often in succession as `restarts` says.

    Raises: `RankError` or `SpecError` of the rank that failed first.
    """
    assert request.run_path is not None
    left, saved = request.settings.restarts, _newest(request.run_path)
    with tempfile.TemporaryDirectory(prefix="armillary-") as name, loopback():
        folder = Path(name)
        with _passing_on(folder) as told:
            while True:
                started = time.time()
                try:
                    return _once(request, folder, told)
                except RankError as error:
                    newest = _newest(request.run_path)
                    left = request.settings.restarts if newest > saved else left
                    if not error.is_lost or left <= 0:
                        raise
                    left, saved = left - 1, newest
                    request = _again(request, error, started)


def _newest(run: Path) -> int:
    return max(saved_steps(run / "checkpoints"), default=-1)


def _again(request: TrainRequest, error: RankError, started: float) -> TrainRequest:
    """The request to go on after `error`, said aloud."""
    assert request.run_path is not None
    why = hang_in_words(request.run_path, started) or error.summary
    if not request.quiet:
        sys.stderr.write(f"{why}; starting the ranks again\n")
    return replace(request, is_resumed=True, restart_note=why)


def _once(request: TrainRequest, folder: Path, told: list[int]) -> Outcome:
    """One life of the ranks."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    assert request.run_path is not None
    _silence_launcher()
    errors = Path(tempfile.mkdtemp(dir=folder))
    (errors / RANKS).mkdir()
    warm_up(request.layout.num_ranks)
    config = _launch_config(request.layout.num_ranks, errors)
    with _ending_survivors(errors / RANKS):
        try:
            outcomes: Mapping[int, Outcome] = elastic_launch(config, run_rank)(
                request, str(errors), os.getpid()
            )
            return outcomes[0]
        except SignalException as stopped:
            return _left_outcome(errors) or _interrupted(request.run_path, stopped.sigval)
        except ChildFailedError as failed:
            if (outcome := _left_outcome(errors)) is not None:
                return outcome
            if told:
                return _interrupted(request.run_path, told[0])
            ranks = {rank: failure.exitcode for rank, failure in failed.failures.items()}
            raise first_error(errors, ranks) from None


def _launch_config(num_ranks: int, folder: Path) -> "LaunchConfig":
    """Ranks of this host alone, forked from a server that has imported torch once."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    from armillary.train.start.own_store import register

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend=register(),
        local_addr=LOCAL_ADDRESS,
        max_restarts=0,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
        monitor_interval=0.05,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        signals_to_handle="SIGHUP,SIGQUIT",
    )


def run_rank(request: TrainRequest, errors: str, agent: int) -> Outcome:
    """One rank's whole life; an error is left in the folder `errors`, for the parent to show.

    So is the outcome of an interrupted run: a rank that returned it would wait for the parent to
    take it, which waits for the rank to end.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // request.layout.num_ranks))
    folder = Path(errors)
    here = folder / RANKS / str(os.getpid())
    try:
        here.touch()
    except FileNotFoundError:  # the agent is gone, and has taken its folder with it
        raise SystemExit(INTERRUPTED) from None
    if (folder.parent / TOLD).exists():
        here.unlink()
        raise SystemExit(INTERRUPTED)
    let_through()
    try:
        outcome = train_rank(request, agent=agent)
    except BaseException as error:
        leave_error(folder, int(os.environ["RANK"]), error)
        raise
    finally:
        here.unlink(missing_ok=True)
    if outcome.exit_code == INTERRUPTED:
        if outcome.is_writer:
            values = asdict(outcome) | {"run_path": str(outcome.run_path)}
            (folder / OUTCOME).write_text(json.dumps(values), encoding="utf-8")
        raise SystemExit(INTERRUPTED)
    return outcome


def _left_outcome(folder: Path) -> Outcome | None:
    path = folder / OUTCOME
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(**(values | {"run_path": Path(values["run_path"])}))


def _silence_launcher() -> None:
    """What torch's launcher says of ranks that fail is said by us, once."""
    for name in logging.root.manager.loggerDict:
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _ending_survivors(ranks: Path) -> Iterator[None]:
    """Kill the ranks that do not leave by themselves after another was killed.

    Afterwards none is noted any more: a number may be given to another process.
    """
    over = threading.Event()

    def look() -> None:
        lost: set[int] = set()
        lost_s = math.inf
        while not over.wait(0.25):
            numbers = {int(path.name) for path in ranks.glob("*")}
            lost |= {number for number in numbers if not is_alive(number)}
            if lost:
                lost_s = min(lost_s, time.monotonic())
            if time.monotonic() - lost_s > SURVIVORS_LEAVE_S:
                for number in numbers - lost:
                    with suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for path in ranks.glob("*"):
            path.unlink(missing_ok=True)


@contextmanager
def _passing_on(folder: Path) -> Iterator[list[int]]:
    """Pass signals to stop on to the ranks, which save and leave; those that came, by number.

    torch's launcher would raise an exception wherever the signal finds it, and one that is raised
    in a callback of the interpreter is lost. The other handlers it takes are given back.
    """
    told: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        (folder / TOLD).touch()
        for path in folder.glob(f"*/{RANKS}/*"):
            with suppress(ProcessLookupError):
                os.kill(int(path.name), number)

    is_main = threading.current_thread() is threading.main_thread()
    numbers = (*STOPPING, signal.SIGHUP, signal.SIGQUIT) if is_main else ()
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers[: len(STOPPING)]:
        signal.signal(number, pass_on)
    try:
        yield told
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _interrupted(run_path: Path, number: int) -> Outcome:
    """The outcome after a signal: the ranks have saved and left, or were made to leave."""
    steps = saved_steps(run_path / "checkpoints")
    message = "interrupted; saved, go on with --resume" if steps else "interrupted before a save"
    return Outcome(
        exit_code=INTERRUPTED,
        run_path=run_path,
        num_steps=max(steps, default=0),
        loss=float("nan"),
        message=f"{signal.Signals(number).name}: {message}",
    )
