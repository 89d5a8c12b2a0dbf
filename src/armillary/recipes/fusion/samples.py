"""Shots as samples of a recipe: to be learned from, judged, or scored.

Shapes: T rows, F features
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from armillary.recipes.fusion.signals import Shot, Shots

Batch = dict[str, torch.Tensor]


class ShotRows(torch.utils.data.Dataset[Batch]):
    """One sample a shot: its rows of features (T, F), and how it ended.

    With `training` the rows stop where the current begins to fall: what follows is no forecast.
    """

    def __init__(self, shots: Sequence[Shot], fingerprint: str, *, training: bool = False) -> None:
        self.shots = tuple(shots)
        self.training = training
        hard = np.mean([truth_of(shot)["hardness"] > 0.5 for shot in shots]) if training else 0.5
        self.weights = (0.5 / max(1 - hard, 1e-3), 0.5 / max(hard, 1e-3))
        text = f"{fingerprint} {training} {[shot.shot_id for shot in shots]}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.shots)

    def __getitem__(self, i: int) -> Batch:
        shot = self.shots[i]
        truth = truth_of(shot)
        stop = int(truth["fall_row"]) + 1 if self.training else None
        features = torch.from_numpy(shot.features_TF[:stop].astype(np.float32))
        sample = {name: torch.tensor(value) for name, value in truth.items()}
        sample["weight"] = torch.tensor(self.weights[int(truth["hardness"] > 0.5)])
        return sample | {"features": features, "lengths": torch.tensor(len(features))}


class TableRows(ShotRows):
    """The shots of a table to be scored, and which rows of the table they are."""

    def __init__(self, machine: Shots) -> None:
        super().__init__(machine.shots, machine.fingerprint)
        self.table = machine.table
        place = dict(zip(machine.table.shot_ids, machine.table.rows, strict=True))
        self.places = [place[shot.shot_id] for shot in machine.shots]

    def __getitem__(self, i: int) -> Batch:
        return super().__getitem__(i) | {"is_scored": torch.tensor(True)}


def report_skipped(machine: Shots) -> None:
    """A warning that names each shot left out, with its reason; none if there is none."""
    _warn("were left out", machine.skipped)


def report_doubtful(machine: Shots) -> None:
    """A warning that names each shot that is scored although something is wrong with it."""
    _warn("are scored by what can be read of them", machine.table.doubtful)


def _warn(what: str, shots: Sequence[tuple[int, str]]) -> None:
    if shots:
        reasons = "; ".join(f"{shot}: {reason}" for shot, reason in shots[:20])
        warnings.warn(f"{len(shots)} shots {what}: {reasons}", stacklevel=4)


def truth_of(shot: Shot) -> dict[str, Any]:
    """What is known of a shot's ending, as numbers; of a shot without one, that it goes on."""
    if shot.ending is None:
        end = len(shot.signals_TV) - 1
        return {
            "shot": shot.shot_id,
            "disrupted": False,
            "hardness": 0.5,
            "fall_row": end,
            "quench_row": float(end),
        }
    end_of = shot.ending
    return {
        "shot": shot.shot_id,
        "disrupted": end_of.is_disruption,
        "hardness": end_of.hardness,
        "fall_row": end_of.fall_row,
        "quench_row": end_of.quench_row,
    }
