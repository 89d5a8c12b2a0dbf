"""When to save by the clock: as told, or as often as failures and the cost of saving make best."""

import statistics
import time

from armillary.core.failures import daly_interval_s
from armillary.spec import Plan, TrainSettings

GUESS_FIRST_SAVE_S = 60.0
NUM_REMEMBERED = 9


class Cadence:
    """The time between checkpoints; rank 0 asks it, and tells the others with the step.

    `interval_s` is infinite where nothing was asked for and no failures are known: checkpoints are
    then those of evaluations and of `checkpoint_every_steps`. By Daly's formula the cost of a
    checkpoint is the time that training is held up by it, since writing goes on beside it; the
    interval is never shorter than the writing takes.
    """

    def __init__(self, settings: TrainSettings, plan: Plan | None = None) -> None:
        self.told_s = settings.checkpoint_every_s
        self.between_s = _between_failures_s(settings, plan)
        self._held_s: list[float] = []
        self._written_s: list[float] = []
        self._began_s = time.monotonic()

    @property
    def interval_s(self) -> float:
        """Seconds from one checkpoint's beginning to the next."""
        if self.told_s > 0.0:
            return self.told_s
        if self.between_s <= 0.0:
            return float("inf")
        if not self._written_s:
            return min(GUESS_FIRST_SAVE_S, self.between_s / 2)
        held_s = statistics.median(self._held_s)
        return max(float(daly_interval_s(held_s, self.between_s)), max(self._written_s))

    def is_due(self) -> bool:
        """Whether the next checkpoint is due."""
        return time.monotonic() - self._began_s >= self.interval_s

    def began(self, held_s: float) -> None:
        """Note that a checkpoint was begun, which held training up for `held_s`."""
        self._began_s = time.monotonic()
        self._held_s = [*self._held_s, held_s][-NUM_REMEMBERED:]

    def written(self, written_s: float) -> bool:
        """Note that the writing of a checkpoint took `written_s`; whether it was the first."""
        is_first = not self._written_s
        self._written_s = [*self._written_s, written_s][-NUM_REMEMBERED:]
        return is_first

    def __str__(self) -> str:
        if self.told_s > 0.0:
            return f"a checkpoint every {self.told_s:g} s, as told"
        return (
            f"a checkpoint every {self.interval_s:.3g} s: a failure every "
            f"{self.between_s / 3600:.3g} h, {statistics.median(self._held_s):.2g} s of training "
            f"and {max(self._written_s):.2g} s of writing each (Daly 2006)"
        )


def _between_failures_s(settings: TrainSettings, plan: Plan | None) -> float:
    """Seconds between failures of the whole job: as told, or the plan's; 0 where not known."""
    if settings.hours_between_failures > 0.0:
        return settings.hours_between_failures * 3600.0
    return plan.survival.between_failures_s if plan is not None and plan.survival else 0.0
