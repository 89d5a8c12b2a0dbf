"""Being told to stop: SIGINT, SIGTERM or SIGUSR1 become a wish met at the end of a step.

Batch systems send SIGTERM before they preempt a job, and SIGUSR1 before its time is over where they
are asked to (Slurm's --signal).
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopWish:
    """Whether this process was told to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name


@contextlib.contextmanager
def watch_signals() -> Iterator[StopWish]:
    """A wish that a signal to stop sets, instead of ending the process; restored on leaving."""
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = [signal.signal(number, wish._receive) for number in STOPPING]
    try:
        yield wish
    finally:
        for number, handler in zip(STOPPING, before, strict=True):
            signal.signal(number, handler)
