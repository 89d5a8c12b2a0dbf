"""Does nothing of a row's prediction know what comes after it, and do the labels read a quench?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armillary.feeds.shots import VARIABLES
from armillary.recipes.fusion.alarms import auc, scored_rows, shot_scores, slice_auc
from armillary.recipes.fusion.features import FEATURES, STATE, physics_features
from armillary.recipes.fusion.forest import MISSING, Forest
from armillary.recipes.fusion.labels import STEP_S, ending
from armillary.recipes.fusion.network import KINDS, Ensemble, score_logit, training_quantiles
from armillary.recipes.fusion.signals import clean

NUM_ROWS = 40


def random_signals(seed: int, num_rows: int = NUM_ROWS) -> np.ndarray:
    """Signals (T, 16) of no plasma, with gaps, zeros and NaN in them."""
    generator = np.random.default_rng(seed)
    signals = generator.normal(1.0, 0.7, (num_rows, len(VARIABLES)))
    signals[:, VARIABLES.index("Ip")] *= generator.choice([-6e5, 6e5])
    signals[:, VARIABLES.index("ne_line")] *= 2e19
    signals[generator.random(signals.shape) < 0.1] = np.nan
    signals[generator.random(signals.shape) < 0.1] = 0
    return signals


def changed_after(signals: np.ndarray, row: int, seed: int) -> np.ndarray:
    """The same rows up to `row`, and others after it."""
    other = signals.copy()
    other[row + 1 :] = random_signals(seed, len(signals))[row + 1 :] * 3
    return other


@given(seed=st.integers(0, 10_000), row=st.integers(0, NUM_ROWS - 1))
def test_features_know_nothing_of_later_rows(seed: int, row: int) -> None:
    signals = random_signals(seed)
    before = physics_features(clean(signals))
    after = physics_features(clean(changed_after(signals, row, seed + 1)))
    np.testing.assert_array_equal(before[: row + 1], after[: row + 1])
    assert before.shape == (NUM_ROWS, len(FEATURES))


@given(seed=st.integers(0, 10_000), row=st.integers(0, NUM_ROWS - 1))
def test_a_shot_cut_short_has_the_same_features(seed: int, row: int) -> None:
    """A row's features are those it has while the shot is still running."""
    signals = random_signals(seed)
    whole, running = physics_features(clean(signals)), physics_features(clean(signals[: row + 1]))
    np.testing.assert_array_equal(whole[: row + 1], running)


def test_what_became_of_a_quantity_is_told() -> None:
    """Beams on from row 5 to 19, off since; an energy that rises to row 19 and falls."""
    signals = np.ones((NUM_ROWS, len(VARIABLES)))
    row = np.arange(NUM_ROWS)
    signals[:, VARIABLES.index("p_nbi")] = 1e6 * ((row >= 5) & (row < 20))
    signals[:, VARIABLES.index("wmhd")] = 1e4 * np.minimum(row + 1, 39 - row)
    signals[:15, VARIABLES.index("li")] = np.nan
    known = dict(zip(FEATURES, physics_features(clean(signals)).T, strict=True))
    np.testing.assert_allclose(
        known["rows_since_beams"][[0, 10, 19, 20, 25, 39]], [0, 0, 0, 1, 6, 20]
    )
    np.testing.assert_allclose(known["beam_share"][[4, 9, 39]], [0, 0.5, 15 / 40])
    np.testing.assert_allclose(known["beam_mw_below_highest"][[4, 10, 30]], [0, 0, -1])
    np.testing.assert_allclose(known["energy_1e5_j_below_highest"][[19, 29]], [0, -1.0])
    np.testing.assert_allclose(known["energy_1e5_j_change"][[5, 15, 39]], [0.5, 1.0, -1.0])
    np.testing.assert_allclose(known["li_change"], 0)  # none yet, or none since its first value
    assert len(STATE) + 19 == len(FEATURES)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_know_nothing_of_later_rows(kind: str) -> None:
    torch.manual_seed(0)
    signals = random_signals(3)
    quantiles = training_quantiles(physics_features(clean(signals)))
    network = Ensemble([kind], 2, quantiles, hidden=8).eval()
    for row in (0, 7, NUM_ROWS - 2):
        scores = []
        for one in (signals, changed_after(signals, row, 4)):
            features = torch.tensor(physics_features(clean(one)), dtype=torch.float32)[None]
            with torch.no_grad():
                scores.append(score_logit(network(features))[0, : row + 1])
        torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_other_shots_of_the_batch_change_nothing(kind: str) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 20, len(FEATURES))
    quantiles = training_quantiles(np.random.default_rng(0).normal(size=(200, len(FEATURES))))
    network = Ensemble([kind], 2, quantiles, hidden=8).eval()
    with torch.no_grad():
        together, alone = network(features)[:, 1], network(features[1:2])[:, 0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_missing_feature_is_the_middle_of_the_scale() -> None:
    quantiles = training_quantiles(np.random.default_rng(0).normal(size=(200, len(FEATURES))))
    network = Ensemble(["gru"], 2, quantiles, hidden=8).eval()
    middle = torch.tensor(quantiles[:, quantiles.shape[1] // 2], dtype=torch.float32)
    with torch.no_grad():
        known = network(middle.expand(1, 5, -1))
        missing = network(torch.full((1, 5, len(FEATURES)), torch.nan))
    torch.testing.assert_close(known, missing)


def test_a_network_without_quantiles_gives_nan() -> None:
    """Never a plausible number from a scale that was not fitted."""
    network = Ensemble(["gru", "rows"], 2, np.full((len(FEATURES), 7), np.nan), hidden=8).eval()
    assert network(torch.zeros(1, 4, len(FEATURES))).isnan().all()


def current(fall_s: float, num_flat: int = 40, sign: float = 1.0) -> np.ndarray:
    """A current that rises, stays, and falls in a straight line, 80 % to 20 % in `fall_s`."""
    per_row = 0.6 * STEP_S / fall_s
    down = np.maximum(1 - per_row * np.arange(1, 60), 0)
    return sign * 7e5 * np.r_[np.linspace(0.2, 1, 10), np.ones(num_flat), down]


@given(fall_s=st.floats(0.004, 0.1), flat=st.integers(5, 80), sign=st.sampled_from([-1.0, 1.0]))
def test_a_straight_fall_is_measured(fall_s: float, flat: int, sign: float) -> None:
    found = ending(current(fall_s, flat, sign))
    expected = max(fall_s, 0.6 * STEP_S)
    assert found.fall_s == pytest.approx(expected, abs=0.3 * STEP_S)
    assert found.fall_row == 10 + flat - 1
    assert found.quench_row >= found.fall_row


def test_the_three_endings() -> None:
    quench, between, soft = (ending(current(s)) for s in (0.005, 0.018, 0.060))
    assert (quench.is_disruption, quench.is_soft) == (True, False)
    assert (between.is_disruption, between.is_soft) == (False, False)
    assert (soft.is_disruption, soft.is_soft) == (False, True)
    assert quench.hardness > 0.85 > between.hardness > 0.4 > 0.1 > soft.hardness


def test_the_last_fall_counts() -> None:
    """A dip that recovers is no ending."""
    dipped = current(0.060)
    dipped[20:23] *= 0.1
    assert ending(dipped).is_soft


@pytest.mark.parametrize("bad", [np.zeros(30), np.ones(30), np.r_[np.ones(20), 0.5], np.zeros(0)])
def test_a_current_without_an_end_is_refused_in_words(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="plasma current"):
        ending(bad)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs(pairs: list[tuple[int, bool]]) -> None:
    score = np.array([p[0] for p in pairs], float)
    positive = np.array([p[1] for p in pairs])
    high, low = score[positive], score[~positive]
    if not len(high) or not len(low):
        assert np.isnan(auc(score, positive))
        return
    won = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    assert auc(score, positive) == pytest.approx(won)


def test_rows_too_late_for_an_alarm_count_nothing() -> None:
    """The last 30 ms before the fall, and all after it, for soft and hard endings alike."""
    assert [scored_rows(row, 100) for row in (50, 3, 0, 200)] == [45, 1, 1, 100]
    early, late = np.zeros(60), np.zeros(60)
    early[44], late[45] = 1, 1
    probability = np.empty(2, object)
    probability[:] = [early, late]
    known = {"probability": probability, "fall_row": np.array([50, 50])}
    assert shot_scores(known).tolist() == [1, 0]
    assert slice_auc(known | {"disrupted": np.array([True, False])}) > 0.5


def grown_forest(seed: int = 0) -> tuple[Forest, np.ndarray, np.ndarray]:
    """A small forest, the rows (N, F) it was grown on, and what it was told of them."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(20 * NUM_ROWS, 5)).astype(np.float32)
    target = rows[:, 0] + rows[:, 3] > 0.2
    rows[generator.random(rows.shape) < 0.1] = np.nan
    forest = Forest(num_trees=10, num_nodes=63)
    forest.grow(rows, target, seed)
    return forest, rows, target


def test_a_forest_says_what_scikit_learn_says() -> None:
    from sklearn.ensemble import ExtraTreesClassifier

    forest, rows, target = grown_forest()
    filled = np.nan_to_num(rows, nan=MISSING)
    theirs = ExtraTreesClassifier(10, max_leaf_nodes=32, max_features=0.4, random_state=0)
    chance = theirs.fit(filled, target).predict_proba(filled)[:, 1].clip(1e-3, 1 - 1e-3)
    features = torch.from_numpy(rows.reshape(20, NUM_ROWS, 5))
    logit = forest(features).flatten().numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), chance, atol=1e-5)


def test_a_forest_knows_nothing_of_later_rows() -> None:
    forest, _, _ = grown_forest()
    first = torch.randn(1, NUM_ROWS, 5, generator=torch.Generator().manual_seed(1))
    other = first.clone()
    other[:, 25:] = torch.nan
    torch.testing.assert_close(forest(first)[:, :25], forest(other)[:, :25], rtol=0, atol=0)
    assert not torch.equal(forest(first)[:, 25:], forest(other)[:, 25:])


def test_a_checkpoint_carries_the_trees() -> None:
    forest, _, _ = grown_forest()
    features = torch.randn(2, NUM_ROWS, 5, generator=torch.Generator().manual_seed(2))
    restored = Forest(num_trees=10, num_nodes=63)
    assert float(restored(features).abs().max()) == 0.0
    restored.load_state_dict(forest.state_dict())
    assert torch.equal(restored(features), forest(features))
