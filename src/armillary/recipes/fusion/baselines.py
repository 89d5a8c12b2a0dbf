"""What the network is measured against: gradient boosting on the same signals, and two cheats.

`gradient boosting` learns how the shot ends, row by row, from the sixteen cleaned signals;
`gradient boosting (100 ms)` learns whether a disruption begins within 100 ms (the usual choice);
`gradient boosting (both)` joins these two into one score by the formula of the network's own;
`gradient boosting (physics)` learns as the first, from the network's own features.
The cheats know no physics: the shot's number, and the time since its start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from armillary.recipes.fusion.alarms import HORIZON_ROWS
from armillary.recipes.fusion.network import EARLY_LOGIT, EARLY_ROWS, SOON_LIMIT, SOON_WEIGHT
from armillary.recipes.fusion.signals import Shot

BOOSTING = {
    "max_iter": 150,
    "learning_rate": 0.06,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 40,
    "l2_regularization": 1.0,
    "random_state": 0,
}

Scores = list[NDArray[np.float64]]


def rival_scores(train: Sequence[Shot], test: Sequence[Shot]) -> dict[str, Scores]:
    """Probabilities of every rival for every row of the test shots.

    The boosted ones need scikit-learn; without it only the cheats are given.
    """
    found = {
        "cheat: shot number": _by_shot_number(train, test),
        "cheat: time since start": [np.arange(len(s.signals_TV)) / 200.0 for s in test],
    }
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return found
    judged = [s for s in train if s.ending and (s.ending.is_disruption or s.ending.is_soft)]
    ends = boost(judged, test, physics=False)
    soon = boost(judged, test, physics=False, horizon=HORIZON_ROWS)
    boosted = {
        "gradient boosting": ends,
        "gradient boosting (100 ms)": soon,
        "gradient boosting (both)": [_joined(*one) for one in zip(ends, soon, strict=True)],
        "gradient boosting (physics)": boost(judged, test, physics=True),
    }
    return boosted | found


def boost(
    train: Sequence[Shot], test: Sequence[Shot], *, physics: bool, horizon: int | None = None
) -> Scores:
    """Probabilities (T,) for each test shot from trees over single rows.

    With `horizon` the target is a disruption within that many rows, without it the ending.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    def inputs(shot: Shot) -> NDArray[np.float64]:
        return shot.features_TF if physics else shot.signals_TV

    rows, targets = [], []
    for shot in train:
        assert shot.ending is not None
        stop = shot.ending.fall_row + 1
        late = np.arange(stop) >= (0 if horizon is None else shot.ending.fall_row - horizon)
        rows.append(inputs(shot)[:stop])
        targets.append(late & shot.ending.is_disruption)
    trees = HistGradientBoostingClassifier(**BOOSTING)
    trees.fit(np.concatenate(rows), np.concatenate(targets))
    return [trees.predict_proba(inputs(shot))[:, 1] for shot in test]


def _joined(ends_T: NDArray[np.float64], soon_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """One probability (T,) from two, as `network.score_logit` makes one logit from two."""
    logits = [np.log(p / (1 - p)) for p in (ends_T.clip(1e-4, 1 - 1e-4), soon_T.clip(1e-4, 0.9999))]
    early = EARLY_LOGIT * np.exp(-np.arange(len(ends_T)) / EARLY_ROWS)
    total = logits[0] + SOON_WEIGHT * logits[1].clip(-SOON_LIMIT, SOON_LIMIT) - early
    return np.asarray(1 / (1 + np.exp(-total)))


def _by_shot_number(train: Sequence[Shot], test: Sequence[Shot]) -> Scores:
    """The share of disruptions among the 25 nearest training shots in number."""
    judged = [s for s in train if s.ending and (s.ending.is_disruption or s.ending.is_soft)]
    number = np.array([s.shot_id for s in judged])
    hard = np.array([s.ending is not None and s.ending.is_disruption for s in judged])
    scores = []
    for shot in test:
        near = np.argsort(np.abs(number - shot.shot_id), kind="stable")[:25]
        scores.append(np.full(len(shot.signals_TV), hard[near].mean()))
    return scores
