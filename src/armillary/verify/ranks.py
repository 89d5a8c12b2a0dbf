"""Warm ranks of this host: processes that stay alive and form a fresh group for every job.

Starting Python and torch anew for every layout would cost seconds each time; forming a group costs
milliseconds. What runs in a job is the real code of a rank, on real gloo collectives.
"""

import logging
import multiprocessing
import os
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from armillary.verify.meshes import start_forgetting

JOB_TIMEOUT_S = 120.0
GRACE_S = 2.0
PORT_TRIES = 3
TAKEN = "EADDRINUSE"  # torch's word where a port has been taken since it was found free
CAN_FORK = sys.platform == "linux"
PRELOADED = [
    "armillary.verify.program",
    # what torch would otherwise import on each rank, when it first reduces or shards: 5 s a pool
    "torch._dynamo",
    "torch.distributed._composable.replicate_with_fsdp",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.experimental",
]
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
    """Processes that run `function(*args)` as the ranks of a world of any size up to their own.

    A job of which no answer comes within `job_timeout_s` has failed.
    """

    def __init__(self, job_timeout_s: float = JOB_TIMEOUT_S) -> None:
        self.job_timeout_s = job_timeout_s
        self._context: Any = multiprocessing.get_context("forkserver" if CAN_FORK else "spawn")
        if CAN_FORK:
            self._context.set_forkserver_preload(PRELOADED)
        self._processes: list[Any] = []
        self._pipes: list[Any] = []

    def run(self, num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What `function(*args)` returns on each of `num_ranks` ranks.

        Raises: `RanksFailed` if one of them fails. That another program took the port on which the
        ranks were to meet is no failure of theirs: they then meet on another.
        """
        for _ in range(PORT_TRIES - 1):
            try:
                return self._run(num_ranks, function, *args)
            except RanksFailed as failed:
                if not any(TAKEN in text for text in failed.tracebacks.values()):
                    raise
        return self._run(num_ranks, function, *args)

    def _run(self, num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        self._grow_to(num_ranks)
        port = _free_port()
        for rank, pipe in enumerate(self._pipes[:num_ranks]):
            pipe.send((_variables(rank, num_ranks, port), function, args))
        answers, tracebacks = self._gather(num_ranks)
        if tracebacks:
            self.close()
            raise RanksFailed(tracebacks)
        return [answers[rank] for rank in range(num_ranks)]

    def _gather(self, num_ranks: int) -> tuple[dict[int, Any], dict[int, str]]:
        """What the ranks answer, and the tracebacks of those that failed.

        Once a rank has failed the others are given a short time: they may wait for it forever.
        """
        answers: dict[int, Any] = {}
        tracebacks: dict[int, str] = {}
        waiting = dict(enumerate(self._pipes[:num_ranks]))
        until_s = time.monotonic() + self.job_timeout_s
        while waiting and (left_s := until_s - time.monotonic()) > 0:
            ready: list[Any] = wait(list(waiting.values()), timeout=left_s)
            for pipe in ready:
                rank = next(rank for rank, known in waiting.items() if known is pipe)
                del waiting[rank]
                try:
                    is_well, answer = pipe.recv()
                except EOFError:
                    is_well, answer = False, "the process is gone"
                (answers if is_well else tracebacks)[rank] = answer
                if not is_well:
                    until_s = min(until_s, time.monotonic() + GRACE_S)
        for rank in waiting if not tracebacks else ():
            tracebacks[rank] = f"no answer in {self.job_timeout_s:.0f} s"
        return answers, tracebacks

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
        "TORCHELASTIC_RUN_ID": "verify",
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _work(pipe: Connection) -> None:
    """The life of a process: jobs, until the other end of the pipe is closed."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # what torch warns of on every rank is proven or refuted here
    forget_meshes = start_forgetting()
    while True:
        try:
            variables, function, args = pipe.recv()
        except EOFError:
            return
        for name in LAUNCHER_VARIABLES:
            os.environ.pop(name, None)
        os.environ |= variables
        try:
            answer = True, function(*args)
        except BaseException:
            answer = False, traceback.format_exc()
        try:
            pipe.send(answer)
        except BrokenPipeError:  # nobody waits any more: another rank has failed before
            return
        del answer
        forget_meshes()


def _leave_with_parent() -> None:
    """End this process when the one that asked for it is gone, also amid a collective."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
