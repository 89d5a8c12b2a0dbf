"""Where ranks come from: a launcher's, if one started this process, or ranks of our own."""

import logging
import os
import pickle
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from armillary.axes import admit
from armillary.feeds import Share
from armillary.models import read
from armillary.spec import SpecError
from armillary.step.batches import Feed
from armillary.step.parallel import sees_calls
from armillary.step.recipe import load_recipe
from armillary.train.checkpoint import saved_steps
from armillary.train.failure import first_error, leave_error
from armillary.train.loop import INTERRUPTED, Outcome, train_rank
from armillary.train.request import TrainRequest
from armillary.train.run_folder import RunFolder
from armillary.train.warm import loopback, warm_up

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

SHUTDOWN_TIMEOUT_S = 60
OUTCOME, TOLD = "outcome.pickle", "told-to-stop"
FOREIGN_LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "PMI_SIZE": "MPICH",
}


def launcher_world_size() -> int | None:
    """The number of ranks that a launcher started, None if this process was started alone.

    Raises: `SpecError` under a launcher whose variables Armillary does not read.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    for variable, launcher in FOREIGN_LAUNCHERS.items():
        if int(os.environ.get(variable, "1")) > 1:
            raise SpecError(
                "launcher",
                f"{launcher} started {os.environ[variable]} processes "
                f"({variable}) without RANK and WORLD_SIZE",
                "ranks are named by torchrun's variables",
                "start one torchrun a node, or set RANK, WORLD_SIZE, LOCAL_RANK, "
                "MASTER_ADDR and MASTER_PORT",
            )
    return None


def train(request: TrainRequest) -> Outcome:
    """Train as `request` says: as one of a launcher's ranks, alone, or on ranks started here.

    Raises: `SpecError` on a user's mistake; `RankError` if a rank started here failed otherwise.
    """
    world_size = launcher_world_size()
    num_ranks = request.layout.num_ranks
    if world_size is not None and world_size != num_ranks:
        raise SpecError(
            "layout",
            f"{request.layout} is for {num_ranks} ranks, the launcher started {world_size}",
            "the product of the degrees is the number of ranks",
            f"use a layout such as data={world_size}",
        )
    if world_size is not None or num_ranks == 1:
        return train_rank(request)
    _admit_before_ranks(request)
    if request.run_path is None:
        name = load_recipe(request.recipe_word).name
        request = replace(request, run_path=RunFolder.create(request.runs, name).path)
    return _train_on_own_ranks(request)


def _admit_before_ranks(request: TrainRequest) -> None:
    """Have axes that must see the model called refuse it here, while the ranks' server starts.

    Raises: `SpecError` with the reason of the axis.
    """
    if not sees_calls(request.layout):
        return
    recipe = request.load_recipe()
    feed = Feed(recipe.data()["train"], batch_size=1, share=Share(), collate=recipe.find("collate"))
    batch, num_samples = feed.example()
    graph = read(recipe.model(), lambda model: recipe.loss(model, batch), num_samples)
    admit(request.layout, graph)


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

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
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
            (Path(errors) / OUTCOME).write_bytes(pickle.dumps(outcome))
        raise SystemExit(INTERRUPTED)
    return outcome


def _left_outcome(folder: Path) -> Outcome | None:
    path = folder / OUTCOME
    outcome: Outcome | None = pickle.loads(path.read_bytes()) if path.is_file() else None
    return outcome


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
