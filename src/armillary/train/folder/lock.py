"""One writer to a run's folder: two that go on from it at once would tear each other's files."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from armillary.spec import SpecError

LOCK = "writer.lock"
WAIT_S = 20.0
"""For ranks whose agent was killed, which see it within a second and end."""


@contextlib.contextmanager
def only_writer(run: Path) -> Iterator[None]:
    """Hold a run's folder for this process inside; the system lets go of it with the process.

    Where a file system knows no locks, nothing is held.

    Raises: `SpecError` if another process holds it for longer than a dying rank would.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (run / LOCK).open("a+") as file:
        give_up_s = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    break
            if time.monotonic() > give_up_s:
                raise SpecError(
                    "run",
                    f"{run} is written by {_holder(run)}",
                    "one run writes to a folder at a time (train/folder/lock.py)",
                    "wait until it has ended, or end it",
                )
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


@contextlib.contextmanager
def given_back(run: Path) -> Iterator[None]:
    """Inside, a refusal takes away a run's folder to which nothing has been written."""
    try:
        yield
    except SpecError:
        with contextlib.suppress(OSError):
            if [entry.name for entry in run.iterdir()] == [LOCK]:
                (run / LOCK).unlink()
                run.rmdir()
        raise


def _holder(run: Path) -> str:
    with contextlib.suppress(OSError):
        return (run / LOCK).read_text() or "another process"
    return "another process"
