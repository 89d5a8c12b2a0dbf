"""Where ranks come from: a launcher's, if one started this process, or ranks of our own."""

import json
import logging
import os
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from armillary.spec import SpecError, write_atomically
from armillary.step.recipe import load_recipe
from armillary.train.admission import admit_before_ranks
from armillary.train.checkpoint import saved_steps
from armillary.train.failure import first_error, leave_error
from armillary.train.launchers import Place, find_here, job_hosts
from armillary.train.launchers.address import LOCAL_ADDRESS
from armillary.train.launchers.none import refuse_idle_nodes
from armillary.train.loop import INTERRUPTED, Outcome, train_rank
from armillary.train.rendezvous import seat_of
from armillary.train.request import TrainRequest
from armillary.train.run_folder import RunFolder
from armillary.train.warm import loopback, warm_up

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

SHUTDOWN_TIMEOUT_S = 60
OUTCOME, TOLD = "outcome", "told-to-stop"


def train(request: TrainRequest) -> Outcome:
    """Train as `request` says: as one of a launcher's ranks, alone, or on ranks started here.

    Raises: `SpecError` on a user's mistake; `RankError` if a rank started here failed otherwise.
    """
    place, num_ranks = find_here(), request.layout.num_ranks
    if place is not None and place.world_size != num_ranks:
        raise SpecError(
            "layout",
            f"{request.layout} is for {num_ranks} ranks, the launcher started "
            f"{place.world_size} ({place.launcher}: {place.sources['world_size']})",
            "the product of the degrees is the number of ranks",
            f"use a layout such as data={place.world_size}",
        )
    if place is not None:
        return _train_as_one_of(place, request)
    if num_ranks == 1:
        return train_rank(request)
    refuse_idle_nodes(num_ranks, job_hosts(os.environ))
    admit_before_ranks(request)
    if request.run_path is None:
        name = load_recipe(request.recipe_word).name
        request = replace(request, run_path=RunFolder.create(request.runs, name).path)
    return _train_on_own_ranks(request)


def _train_as_one_of(place: Place, request: TrainRequest) -> Outcome:
    """Train as the rank that a launcher started this process as.

    The exit code is the writer's alone, and it leaves last: a launcher that sees a rank leave with
    another code than 0 ends the others, and the report is still to be written.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(_num_threads(place))
    with loopback() if place.is_on_one_node else nullcontext():
        outcome = train_rank(request, seat_of(place))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return outcome if outcome.is_writer else replace(outcome, exit_code=0)


def _num_threads(place: Place) -> int:
    """A rank's share of the node's cores, or those that its launcher has bound it to."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    all_cores = os.cpu_count() or 1
    if 0 < bound < all_cores:
        return bound
    return max(1, all_cores // (place.local_world_size or 1))


def _train_on_own_ranks(request: TrainRequest) -> Outcome:
    """Start the layout's ranks on this host with torch's elastic launcher, and wait for them."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    assert request.run_path is not None
    _silence_launcher()
    warm_up(request.layout.num_ranks)
    with (
        tempfile.TemporaryDirectory(prefix="armillary-") as errors,
        loopback(),
        _passing_on(Path(errors)) as told,
    ):
        config = _launch_config(request.layout.num_ranks, Path(errors))
        try:
            outcomes: Mapping[int, Outcome] = elastic_launch(config, run_rank)(request, errors)
            return outcomes[0]
        except SignalException as stopped:
            return _left_outcome(Path(errors)) or _interrupted(request.run_path, stopped.sigval)
        except ChildFailedError as failed:
            if (outcome := _left_outcome(Path(errors))) is not None:
                return outcome
            if told:
                return _interrupted(request.run_path, told[0])
            ranks = {rank: failure.exitcode for rank, failure in failed.failures.items()}
            raise first_error(Path(errors), ranks) from None


def _launch_config(num_ranks: int, folder: Path) -> "LaunchConfig":
    """Ranks of this host alone, forked from a server that has imported torch once."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    from armillary.train.own_store import register

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


def run_rank(request: TrainRequest, errors: str) -> Outcome:
    """One rank's whole life; an error is left in the folder `errors`, for the parent to show.

    So is the outcome of an interrupted run: a rank that returned it would wait for the parent to
    take it, which waits for the rank to end.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // request.layout.num_ranks))
    (Path(errors) / f"{os.getpid()}.pid").touch()
    if (Path(errors) / TOLD).exists():
        raise SystemExit(INTERRUPTED)
    try:
        outcome = train_rank(request)
    except BaseException as error:
        leave_error(Path(errors), int(os.environ["RANK"]), error)
        raise
    if outcome.exit_code == INTERRUPTED:
        if outcome.is_writer:
            _leave_outcome(Path(errors), outcome)
        raise SystemExit(INTERRUPTED)
    return outcome


def _leave_outcome(folder: Path, outcome: Outcome) -> None:
    values = asdict(outcome) | {"run_path": str(outcome.run_path)}
    write_atomically(folder / OUTCOME, json.dumps(values))


def _left_outcome(folder: Path) -> Outcome | None:
    path = folder / OUTCOME
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(**values | {"run_path": Path(values["run_path"])})


def _silence_launcher() -> None:
    """What torch's launcher says of ranks that fail is said by us, once."""
    for name in logging.root.manager.loggerDict:
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


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
        for path in folder.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(path.stem), number)

    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT) if is_main else ()
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers[:2]:
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
