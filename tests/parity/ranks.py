"""Real ranks that stay alive: processes that form a fresh gloo group for every job.

Starting Python and torch anew for every layout would cost seconds each time; forming a group costs
milliseconds. What runs in a job is the real code of a rank, on real gloo collectives.
"""

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

JOB_TIMEOUT_S = 120.0
LAUNCHER_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)


class RanksFailed(RuntimeError):
    """Some ranks of a job failed: their tracebacks by rank."""

    def __init__(self, tracebacks: dict[int, str]) -> None:
        super().__init__("\n".join(f"rank {r}\n{text}" for r, text in tracebacks.items()))
        self.tracebacks = tracebacks


class Ranks:
    """Processes that run `function(*args)` as the ranks of a world of any size up to their own."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What `function(*args)` returns on each of `num_ranks` ranks."""
        self._grow_to(num_ranks)
        port = _free_port()
        for rank, pipe in enumerate(self._pipes[:num_ranks]):
            pipe.send((_variables(rank, num_ranks, port), function, args))
        answers: dict[int, Any] = {}
        tracebacks: dict[int, str] = {}
        for rank, pipe in enumerate(self._pipes[:num_ranks]):
            if not pipe.poll(JOB_TIMEOUT_S):
                tracebacks[rank] = f"no answer in {JOB_TIMEOUT_S:.0f} s"
                continue
            try:
                is_well, answer = pipe.recv()
            except EOFError:
                is_well, answer = False, "the process is gone"
            (answers if is_well else tracebacks)[rank] = answer
        if tracebacks:
            self.close()
            raise RanksFailed(tracebacks)
        return [answers[rank] for rank in range(num_ranks)]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(1.0)
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _grow_to(self, num_ranks: int) -> None:
        while len(self._processes) < num_ranks:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_work, args=(theirs,), daemon=False)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)


def _variables(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    if num_ranks == 1:
        return {}
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _work(pipe: Connection) -> None:
    """The life of a process: jobs, until the other end of the pipe is closed."""
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            variables, function, args = pipe.recv()
        except EOFError:
            return
        for name in LAUNCHER_VARIABLES:
            os.environ.pop(name, None)
        os.environ |= variables
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def train_as_rank(request: Any, runs: Path, stop_after: int = 0) -> tuple[Path, int]:
    """Train as one rank; the run's folder and exit code.

    The last rank alone is told to stop, by a signal, once it has done `stop_after` steps.
    """
    from armillary.train import loop

    count = loop.Trainer._count
    if stop_after:

        def count_and_signal(trainer: Any, *args: Any) -> None:
            count(trainer, *args)
            is_last_rank = trainer.world.rank == trainer.world.num_ranks - 1
            if is_last_rank and trainer.counters.step == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        loop.Trainer._count = count_and_signal  # type: ignore[method-assign]
    try:
        outcome = loop.train_rank(replace(request, runs=runs, quiet=True))
    finally:
        loop.Trainer._count = count  # type: ignore[method-assign]
    return outcome.run_path, outcome.exit_code
