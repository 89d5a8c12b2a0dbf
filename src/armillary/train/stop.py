"""Being told to stop: SIGINT and SIGTERM become a wish that the loop meets at the end of a step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


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
    """A wish that SIGINT or SIGTERM sets, instead of ending the process; restored on leaving."""
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, wish._receive) for number in numbers]
    try:
        yield wish
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
