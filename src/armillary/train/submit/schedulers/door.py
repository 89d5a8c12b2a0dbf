"""What every batch system is asked for: directives, a rank's start and end, and a job's state."""

import shutil
import subprocess
from dataclasses import dataclass
from typing import Protocol

from armillary.spec import SpecError

TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What a job asks its batch system for; `leave_s` is how long before the end it is told."""

    name: str
    nodes: int
    ranks_per_node: int
    time_s: int
    leave_s: int
    log: str
    account: str
    queue: str

    @property
    def clock(self) -> str:
        """The time as hours:minutes:seconds."""
        return f"{self.time_s // 3600:02d}:{self.time_s % 3600 // 60:02d}:{self.time_s % 60:02d}"


class Scheduler(Protocol):
    """A batch system: `submits` is its program, `mark` begins its lines in a script."""

    name: str
    submits: str
    mark: str

    def directives(self, ask: Ask) -> list[str]:
        """The lines that ask for nodes, time and a log, without the mark."""
        ...

    def rank_prefix(self, ask: Ask) -> str:
        """What a rank's command stands behind, to be told in time before the end; may be empty."""
        ...

    def waiting(self) -> str:
        """Shell lines that wait for the ranks, pass signals on, and leave their exit code in
        `code`, after `ranks` was set to the process that started them.
        """
        ...

    def again(self) -> str:
        """Shell lines that put an interrupted job back into the queue, or say how."""
        ...

    def submit(self, script: str) -> str:
        """Submit a script; the job's number."""
        ...

    def state(self, job: str) -> dict[str, str]:
        """What the batch system says of a job: `state` in its own words, and more; {} if gone."""
        ...


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program of the batch system.

    Raises: `SpecError` if it is not on this machine, or gives no answer.
    """
    if shutil.which(words[0]) is None:
        raise SpecError(
            words[0],
            "not found on this machine",
            "jobs are submitted and asked after where the batch system's programs are",
            "run this on a login node of the site; --dry-run prints the script anywhere",
        )
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise SpecError(
            words[0], f"no answer in {TIMEOUT_S:.0f} s", "the batch system answers", "try again"
        ) from None


def submitted(words: list[str]) -> str:
    """The last line that a submitting program prints.

    Raises: `SpecError` with its own words if it refuses.
    """
    done = run(words)
    said = done.stdout.strip().splitlines()
    if done.returncode != 0 or not said:
        raise SpecError(
            words[0],
            (done.stderr or done.stdout).strip() or f"exit code {done.returncode}",
            "the batch system takes the job",
            "change what it names; the script is kept in the job's folder",
        )
    return said[-1].strip()


def unanswered(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The state of a job whose batch system gave an error instead: it may well be running."""
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return {"state": "not known", "reason": said[-1]}
