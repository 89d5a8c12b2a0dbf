"""Where the time of a step goes."""

import contextlib
import time
from collections.abc import Iterator

import torch


class Phases:
    """Seconds by phase of the current step; on an accelerator they are those of its stream.

    `current` is the phase that the program is in, or the last that it was in.

    Device events are read once the step is over, so that timing adds no wait to it.
    """

    def __init__(self, device: torch.device) -> None:
        self.current = "start"
        self._on_device = device.type != "cpu"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.Event, torch.Event]] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what runs inside to phase `name`."""
        self.current = name
        start = self._mark()
        try:
            yield
        finally:
            stop = self._mark()
            if isinstance(start, float) and isinstance(stop, float):
                self._seconds[name] = self._seconds.get(name, 0.0) + stop - start
            elif isinstance(start, torch.Event) and isinstance(stop, torch.Event):
                self._events.append((name, start, stop))

    def _mark(self) -> "float | torch.Event":
        if not self._on_device:
            return time.perf_counter()
        event = torch.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> dict[str, float]:
        """The seconds by phase since the last call."""
        for name, start, stop in self._events:
            stop.synchronize()
            self._seconds[name] = self._seconds.get(name, 0.0) + start.elapsed_time(stop) / 1e3
        taken, self._seconds, self._events = self._seconds, {}, []
        return taken
