"""Whether a rank gets on: a thread that sees a hang, leaves the stacks, and ends the rank.

All ranks of a step wait for each other, so one that hangs stops all, and each sees it by itself:
it leaves its stack in the run's folder and ends, and whoever started the ranks starts them again.
A rank whose agent or launcher is gone ends as well, for another may soon be given its place.
"""

import contextlib
import faulthandler
import json
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from armillary.spec import write_atomically
from armillary.step.phases import Phases

HUNG, ORPHANED = 71, 72
POLL_S = 0.25
NUM_STEPS = 64
LEAST_STEPS = 3
STACKS = "stacks"
LEAVE_TOGETHER_S = 1.0
STUCK_FACTOR = 1.5
"""How much later than this thread the C library's own timer fires, which needs no interpreter."""


class Watch:
    """Watches one rank from start to end of a context; `tick` says that it got on.

    A rank that has done some steps and gets no further for `hang_steps` median steps, and at least
    `least_s`, is ended with exit code 71 where `ends` is true, and is only told of otherwise. A
    rank whose agent is gone is ended with 72.
    """

    def __init__(self, *, rank: int, hang_steps: float, least_s: float, ends: bool) -> None:
        self.rank, self.ends = rank, ends
        self.hang_steps, self.least_s = hang_steps, least_s
        self.phases: Phases | None = None
        self.run: Path | None = None
        self.step = 0
        self._steps_s: deque[float] = deque(maxlen=NUM_STEPS)
        self._last_s, self._allowed_s, self._doing = time.monotonic(), 0.0, ""
        self._over = threading.Event()
        self._told = False

    @contextlib.contextmanager
    def watching(self, agent: int | None) -> Iterator[Self]:
        """Watch inside; `agent` is the process that the rank is not to outlive."""
        thread = threading.Thread(target=self._look, args=(agent,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()

    def tick(self, doing: str = "", allowed_s: float = 0.0) -> None:
        """Note that the rank got on, and what it does next if that is no part of a step.

        What may take long by right is given `allowed_s`.
        """
        # The time first: the thread must not see an old time beside a shorter allowance.
        self._last_s = time.monotonic()
        self._doing, self._allowed_s = doing, allowed_s

    def stepped(self, step: int, step_s: float) -> None:
        """Note that the rank has done a step."""
        self._steps_s.append(step_s)
        self.step = step
        self.tick()

    @property
    def limit_s(self) -> float:
        """Seconds without getting on that are a hang; infinite until some steps are done."""
        if self.hang_steps <= 0.0 or len(self._steps_s) < LEAST_STEPS:
            return float("inf")
        usual_s = statistics.median([*self._steps_s])
        return max(self.hang_steps * usual_s, self.least_s, self._allowed_s)

    @property
    def doing(self) -> str:
        """What the rank does: a phase of a step, or what it said besides."""
        return self._doing or (self.phases.current if self.phases else "start")

    def waiting(self) -> tuple[float, float]:
        """(seconds since the rank got on, seconds that are a hang), true of one moment."""
        limit_s = self.limit_s  # before the time that it is compared with; see `tick`
        return time.monotonic() - self._last_s, limit_s

    def _look(self, agent: int | None) -> None:
        armed_s = 0.0
        while not self._over.wait(POLL_S):
            if agent is not None and not is_alive(agent):
                os._exit(ORPHANED)
            waited_s, limit_s = self.waiting()
            if waited_s > limit_s:
                self._leave_stack(waited_s)
            elif limit_s == float("inf"):
                faulthandler.cancel_dump_traceback_later()
                armed_s = 0.0
            elif self.ends and time.monotonic() > armed_s:
                # If the interpreter itself is stuck, this thread is too.
                faulthandler.dump_traceback_later(STUCK_FACTOR * limit_s + 2 * POLL_S, exit=True)
                armed_s = time.monotonic() + limit_s / 4
            if waited_s < limit_s:
                self._told = False

    def _leave_stack(self, waited_s: float) -> None:
        """Write down what every thread of this rank does, and end it."""
        if self._told:
            return
        self._told = True
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{self._in_words(waited_s)}\n")
            self._write(waited_s)
        if self.ends:
            time.sleep(LEAVE_TOGETHER_S)  # until the others have seen it too
            os._exit(HUNG)

    def _in_words(self, waited_s: float) -> str:
        return (
            f"rank {self.rank}: no progress for {waited_s:.1f} s after step {self.step}, "
            f"in {self.doing} (limit {self.limit_s:.1f} s)"
        )

    def _write(self, waited_s: float) -> None:
        if self.run is None:
            faulthandler.dump_traceback()
            return
        folder = self.run / STACKS
        folder.mkdir(exist_ok=True)
        with (folder / f"rank-{self.rank}.txt").open("w") as file:
            self._dump(file, waited_s)
        record = {
            "rank": self.rank,
            "step": self.step,
            "doing": self.doing,
            "waited_s": round(waited_s, 3),
            "time": time.time(),
        }
        write_atomically(folder / f"rank-{self.rank}.json", json.dumps(record))

    def _dump(self, file: IO[str], waited_s: float) -> None:
        file.write(f"{self._in_words(waited_s)}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)


def is_alive(process: int) -> bool:
    """Whether a process is there and is not only waiting for its parent to ask how it ended."""
    try:
        os.kill(process, 0)
        text = Path(f"/proc/{process}/stat").read_text()
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a system without /proc
        return True
    return text.rpartition(")")[2].split()[0] != "Z"


def hang_in_words(run: Path, since: float) -> str:
    """What the ranks of a run left of a hang after the time `since`; "" if they left nothing."""
    found = []
    for path in sorted((run / STACKS).glob("rank-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["time"] >= since:
            found.append(record)
    if not found:
        return ""
    found.sort(key=lambda record: (record["step"], record["rank"]))
    shown = ", ".join(f"rank {record['rank']} in {record['doing']}" for record in found[:8])
    return (
        f"no progress for {max(record['waited_s'] for record in found):.0f} s after step "
        f"{found[0]['step']}: {shown}{', ...' * (len(found) > 8)}; stacks in {run / STACKS}"
    )
