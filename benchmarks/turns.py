"""Contenders that take turns step block by step block, so that each sees the same machine.

Every contender is a plain training loop in processes of its own, one a rank, of which those of one
contender run at a time while the others wait for a line. `Contender` is the side of the referee,
`Turn` that of a rank: the loop calls its turn before each step.
"""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Turn:
    """A rank's turn: called before each step, it waits until the referee asks for more steps.

    What the loop prints goes to stderr, so that stdout carries the answers alone.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._steps_left, self._is_last = 0, False
        self._wall_s = self._cpu_s = 0.0

    def __call__(self) -> None:
        """Wait for the next step's turn."""
        if self._steps_left == 0 and not self._is_last:
            self._answer(
                {
                    "wall_s": time.perf_counter() - self._wall_s,
                    "cpu_s": time.process_time() - self._cpu_s,
                }
            )
            words = sys.stdin.readline().split()
            if not words:
                raise SystemExit("the referee has left")
            self._is_last, self._steps_left = words[0] == "finish", int(words[1])
            self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()
        self._steps_left -= 1

    def end(self, content: dict[str, Any]) -> None:
        """Hand the referee what the loop leaves behind."""
        self._answer(content)

    def _answer(self, content: dict[str, Any]) -> None:
        self._answers.write(json.dumps(content) + "\n")


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of a block of steps: by the wall on the slowest rank, and of rank 0's process."""

    wall_s: float
    cpu_s: float


class Contender:
    """A loop's ranks, run block by block: `start`, any number of `run`, `finish`."""

    def __init__(self, name: str, words: list[str], num_ranks: int, log: Path) -> None:
        self.name, self._log = name, log
        port = str(_free_port())
        common = os.environ | {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
        }
        with log.open("w") as file:
            self._ranks = [
                subprocess.Popen(
                    [sys.executable, *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                    bufsize=1,
                    env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
                for rank in range(num_ranks)
            ]

    def start(self) -> None:
        """Wait until the first step is about to begin."""
        self._read()

    def run(self, num_steps: int) -> Spent:
        """Do `num_steps` steps; what they took."""
        self._write(f"go {num_steps}")
        answers = self._read()
        return Spent(max(a["wall_s"] for a in answers), answers[0]["cpu_s"])

    def finish(self) -> list[dict[str, Any]]:
        """Do one last step and all that comes after it; what each rank leaves behind."""
        self._write("finish 1")
        left = self._read()
        for rank in self._ranks:
            rank.wait(60)
        return left

    def stop(self) -> None:
        """End what still runs."""
        for rank in self._ranks:
            if rank.poll() is None:
                rank.kill()

    def _write(self, line: str) -> None:
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write(line + "\n")
            rank.stdin.flush()

    def _read(self) -> list[dict[str, Any]]:
        answers = []
        for rank in self._ranks:
            assert rank.stdout is not None
            line = rank.stdout.readline()
            if not line:
                raise SystemExit(f"{self.name} left:\n{self._log.read_text()[-4000:]}")
            answers.append(json.loads(line))
        return answers


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
