"""What a training run does on any layout: batch, length, seeds, and when to look and save."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from armillary.spec.document import Document, nearest
from armillary.spec.error import SpecError
from armillary.spec.words import parse_value


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings(Document):
    """The settings of a training run; a layout changes none of them.

    A 0 switches off `max_steps`, `clip_norm`, `average_decay` and `patience`; for
    `evaluate_every_steps` and `checkpoint_every_steps` it means once an epoch. `patience` counts
    evaluations without improvement.

    What follows is how a run survives (docs/survive.md). `checkpoint_every_s` is the time between
    checkpoints; 0 leaves it to Daly's formula where the failures are known, from
    `hours_between_failures` of the whole job or from the plan. `checkpoint_store` is where they are
    copied to: a folder, or s3://bucket/folder. `restarts` is how often in succession a run is
    started again without having got on. A rank that gets no further for `hang_steps` median steps,
    and for `hang_least_s`, is ended; 0 switches that off. Up to `skip_batches` batches with a loss
    that is not finite, or is `spike_deviations` above the last ones, are skipped; 0 skips none.
    """

    what: ClassVar[str] = "settings"

    epochs: int = 10
    max_steps: int = 0
    global_batch_size: int = 32
    seed: int = 0
    shuffle: bool = True
    clip_norm: float = 0.0
    average_decay: float = 0.0
    patience: int = 0
    evaluate_every_steps: int = 0
    checkpoint_every_steps: int = 0
    keep_checkpoints: int = 2
    log_every_steps: int = 1
    num_workers: int = 0
    checkpoint_every_s: float = 0.0
    hours_between_failures: float = 0.0
    checkpoint_store: str = ""
    restarts: int = 3
    hang_steps: float = 30.0
    hang_least_s: float = 120.0
    skip_batches: int = 0
    spike_deviations: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "global_batch_size", "keep_checkpoints", "log_every_steps"):
            _at_least(name, getattr(self, name), 1)
        for name in (
            "max_steps",
            "clip_norm",
            "patience",
            "evaluate_every_steps",
            "checkpoint_every_steps",
            "num_workers",
            "seed",
            "checkpoint_every_s",
            "hours_between_failures",
            "restarts",
            "hang_steps",
            "hang_least_s",
            "skip_batches",
            "spike_deviations",
        ):
            _at_least(name, getattr(self, name), 0)
        if not 0 <= self.average_decay < 1:
            raise SpecError(
                "settings.average_decay",
                f"{self.average_decay}",
                "the average keeps this share of itself each step: at least 0, below 1",
                "use 0 for none, or a value such as 0.999",
            )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def parse(cls, name: str, text: str) -> Any:
        """The value of setting `name` that a person wrote as `text`."""
        defaults = {f.name: f.default for f in fields(cls)}
        if name not in defaults:
            raise SpecError(
                f"settings.{name}",
                "unknown setting",
                "a setting of training, or an option of the recipe, can be set",
                nearest(name, defaults),
            )
        return parse_value(text, defaults[name], f"settings.{name}")


def _at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise SpecError(
            f"settings.{name}",
            f"{value}",
            f"{name} is at least {least}",
            f"use {name}={least} or more",
        )
