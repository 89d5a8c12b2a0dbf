"""What a run must not learn from: losses that are not finite or jump, and the batches to blame."""

import json
import statistics
from pathlib import Path
from typing import Any

from armillary.spec import write_atomically
from armillary.step.batches import Step

WINDOW = 64
"""Losses that a jump is measured against. A convention, as is the least number of them."""
LEAST = 16
IN_A_ROW = 3
"""Skipped batches in succession after which the parameters are blamed, and not the data."""
DEVIATION = 1.4826
"""Of a normal distribution, standard deviations in a median absolute deviation. Source: Rousseeuw
and Croux 1993, "Alternatives to the median absolute deviation", JASA 88(424), section 1."""
SKIPPED = "skipped.json"

Place = tuple[int, int]  # epoch, first position


class Guard:
    """Says which losses are jumps. All that it knows is saved with the run, and the same on ranks.

    `deviations` is how far above the median of the last losses a loss may lie, in robust standard
    deviations; 0 leaves every finite loss in.
    """

    def __init__(self, deviations: float = 0.0) -> None:
        self.deviations = deviations
        self.losses: list[float] = []
        self.num_skipped = 0
        self.in_a_row: list[Place] = []
        self.last: Place | None = None

    def is_spike(self, loss: float) -> bool:
        """Whether `loss`, which is finite, is a jump."""
        return self.deviations > 0.0 and loss > self.limit

    @property
    def limit(self) -> float:
        """The largest loss that is no jump; infinite while too few are known."""
        if len(self.losses) < LEAST:
            return float("inf")
        middle = statistics.median(self.losses)
        spread = statistics.median(abs(loss - middle) for loss in self.losses)
        return middle + self.deviations * DEVIATION * spread

    def learned(self, step: Step, loss: float) -> None:
        """Note a step that was learned from."""
        if self.deviations > 0.0:
            self.losses = [*self.losses, loss][-WINDOW:]
        self.in_a_row, self.last = [], (step.epoch, step.start)

    def skipped(self, place: Place) -> None:
        """Note a batch that was skipped."""
        self.in_a_row.append(place)
        self.num_skipped += 1

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "losses": self.losses,
            "num_skipped": self.num_skipped,
            "in_a_row": [[*place] for place in self.in_a_row],
            "last": None if self.last is None else [*self.last],
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        self.losses, self.num_skipped = list(values["losses"]), int(values["num_skipped"])
        self.in_a_row = [(epoch, start) for epoch, start in values["in_a_row"]]
        self.last = None if values["last"] is None else (values["last"][0], values["last"][1])


def read_skipped(run: Path) -> set[Place]:
    """The batches that a run has taken out, by epoch and first position."""
    path = run / SKIPPED
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {(int(epoch), int(start)) for epoch, start in found}


def write_skipped(run: Path, places: set[Place]) -> None:
    """Keep the batches that a run has taken out, for it to do so again when it is started anew."""
    write_atomically(run / SKIPPED, json.dumps(sorted(places)) + "\n")
