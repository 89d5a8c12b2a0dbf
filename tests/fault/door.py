"""The command `armillary` as a person runs it, and what its runs leave."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.parity.runs import Result

TROUBLE = str(Path(__file__).parent / "cases" / "trouble.py")
ARMILLARY = [sys.executable, "-m", "armillary.cli"]
TIMEOUT_S = 60.0


def start(*words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """The command, begun, in a process group of its own."""
    command = [sys.executable, *launcher, "-m", "armillary.cli"] if launcher else ARMILLARY
    return subprocess.Popen(
        [*command, *words],
        env=os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
    """Exit code and all that was printed."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout_s:.0f} s\n{out}{err}") from None
    return process.returncode, out + err


def train(*words: str, launcher: tuple[str, ...] = ()) -> tuple[int, str]:
    """`armillary train` with `words`: exit code and all that was printed."""
    return finish(start("train", *words, launcher=launcher))


def only_run(runs: Path) -> Path:
    """The one run folder in `runs`."""
    [path] = [path for path in runs.iterdir() if path.is_dir()]
    return path


def result(runs: Path) -> Result:
    """The one run in `runs` as numbers."""
    return Result(only_run(runs))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until `condition` holds while `process` runs."""
    give_up_s = time.monotonic() + TIMEOUT_S
    while not condition():
        if process.poll() is not None or time.monotonic() > give_up_s:
            raise AssertionError(f"it never came to that\n{finish(process)[1]}")
        time.sleep(0.02)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the ranks that `process` started, rank 0 first: its grandchildren."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue
        parents[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    servers = {pid for pid, parent in parents.items() if parent == process.pid}
    return sorted(pid for pid, parent in parents.items() if parent in servers)


def steps_done(runs: Path) -> int:
    """The newest checkpoint's step in the one run of `runs`, 0 while there is none."""
    names = [path.name for path in runs.glob("*/checkpoints/step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)
