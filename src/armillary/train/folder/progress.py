"""Progress for people: a live bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_EVERY_S = 10.0


class ProgressReport:
    """What rank 0 says while it trains; a quiet one says nothing. Everything goes to stderr."""

    def __init__(self, *, quiet: bool, num_steps: int, done: int) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._is_live = self.console.is_terminal and not quiet
        self._num_steps = num_steps
        self._started_s, self._first_step = time.monotonic(), done
        self._logged_s = 0.0
        self._bar: Progress | None = None
        if self._is_live:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
                console=self.console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("train", total=num_steps, completed=done, shown="")
            self._bar.start()

    def step(self, line: dict[str, Any]) -> None:
        """Show the step that `line` of metrics.jsonl describes."""
        now_s = time.monotonic()
        if self._bar is None and now_s - self._logged_s < LOG_EVERY_S:
            return
        shown = (
            f"loss {line['loss']:.4g}  {line['samples'] / line['step_s']:,.0f} samples/s  "
            f"{line['memory_bytes'] / 2**20:,.0f} MiB"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=line["step"], shown=shown)
            return
        self._logged_s = now_s
        done = max(line["step"] - self._first_step, 1)
        left_s = (now_s - self._started_s) / done * (self._num_steps - line["step"])
        self.say(
            f"step {line['step']}/{self._num_steps}  epoch {line['epoch']}  {shown}  "
            f"{left_s:.0f} s left"
        )

    def say(self, message: str) -> None:
        """Show a message above the bar, or as a line of the log."""
        self.console.print(message, markup=False, soft_wrap=True)
        if not self._is_live:
            sys.stderr.flush()

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.stop()
