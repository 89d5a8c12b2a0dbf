"""Which shots train, validate and test.

Two splits, because they answer two questions. `random`: grouped five-fold by shot, for a machine
that goes on as it did. `time`: shots below 24000 train, the later ones test, for the next years
of the same machine; its validation shots are the latest of the training shots.

Two more are for a model to be used, which learns from as many shots as it may. `most`: one shot in
ten tests it. `all`: none does, once the others have said how good it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from armillary.recipes.fusion.signals import Shot
from armillary.spec import SpecError

NUM_FOLDS = 5
MOST_FOLDS = 10
"""One shot in so many tests a model that learns from most."""
FIRST_TEST_SHOT = 24000
FOLD_SEED = 0
SPLITS = ("random", "time", "most", "all")

Indices = NDArray[np.int64]


def assign(
    shots: tuple[Shot, ...], split: str, fold: int, validation_share: float, checked: bool = True
) -> dict[str, Indices]:
    """Indices of the shots that train, validate and test.

    Shots whose ending is neither hard nor soft are among the training shots only.

    Raises: SpecError for an unknown split or fold, or when a part is left without both endings
    (`checked`).
    """
    if split not in SPLITS:
        raise SpecError(
            "fusion.split",
            f"{split!r} is none",
            "a split is random, time, most or all",
            f"use one of {', '.join(SPLITS)}",
        )
    if not 0 <= fold < NUM_FOLDS:
        raise SpecError(
            "fusion.fold",
            f"there is no fold {fold}",
            "the splits random and most have 5 folds to choose from",
            "use 0, 1, 2, 3 or 4",
        )
    order = np.array([shot.shot_id for shot in shots])
    if split in ("random", "most"):
        test = _fold_of(shots, NUM_FOLDS if split == "random" else MOST_FOLDS) == fold
        shuffled = np.random.default_rng(FOLD_SEED + 1 + fold).random(len(shots))
    elif split == "time":
        test = order >= FIRST_TEST_SHOT
        shuffled = order.astype(float)
    else:
        test = np.zeros(len(shots), bool)
        shuffled = np.random.default_rng(FOLD_SEED).random(len(shots))
    judged = np.array([_is_judged(shot) for shot in shots])
    candidates = np.flatnonzero(~test & judged)
    late = candidates[np.argsort(shuffled[candidates], kind="stable")]
    count = round(validation_share * len(late))
    validation = np.sort(late[len(late) - count :])
    barred = np.isin(np.arange(len(shots)), validation) | test
    if split == "time" and count:  # nothing of the validation months may be trained on
        barred |= order >= order[validation].min()
    found = {
        "train": np.flatnonzero(~barred),
        "validation": validation,
        "test": np.flatnonzero(test & judged),
    }
    if split == "all":
        del found["test"]
    if checked:
        _check(shots, found)
    return found


def _is_judged(shot: Shot) -> bool:
    return shot.ending is not None and (shot.ending.is_disruption or shot.ending.is_soft)


def _fold_of(shots: tuple[Shot, ...], num_folds: int) -> Indices:
    """The fold of each shot, endings spread evenly, from the shots' numbers alone."""
    generator = np.random.default_rng(FOLD_SEED)
    fold = np.zeros(len(shots), np.int64)
    kind = np.array(
        [-1 if s.ending is None else s.ending.is_disruption + 2 * s.ending.is_soft for s in shots]
    )
    for one in np.unique(kind):
        members = generator.permutation(np.flatnonzero(kind == one))
        fold[members] = np.arange(len(members)) % num_folds
    return fold


def _check(shots: tuple[Shot, ...], found: dict[str, Indices]) -> None:
    for name, indices in found.items():
        endings = [shots[i].ending for i in indices]
        hard = sum(one is not None and one.is_disruption for one in endings)
        soft = sum(one is not None and one.is_soft for one in endings)
        if not hard or not soft:
            raise SpecError(
                f"fusion.{name}",
                f"{hard} disruptions and {soft} soft endings",
                "each part of the data holds both endings (recipes/fusion/splits.py)",
                "give a table with more shots, another split, or --set validation_share=0.2",
            )
