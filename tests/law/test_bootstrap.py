"""Laws of the bootstrap: coverage, pairing, seeds, groups, what cannot be measured."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from armillary.audit import Resamples, compare, difference, interval

FINITE = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def mean_of(values: np.ndarray):
    return lambda index: float(values[index].mean())


def error(predictions: dict[str, np.ndarray]) -> dict[str, float]:
    return {"mae": float(np.abs(predictions["forecast"] - predictions["observed"]).mean())}


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for repeat in range(500):
        values = rng.exponential(2.0, size=120)
        means = Resamples(120, num_resamples=400, seed=repeat).means(values)
        low, high = np.quantile(means, [0.025, 0.975])
        covered += low <= 2.0 <= high
    # 95 % less what a percentile interval loses on a skew law at n = 120; 500 repeats: +- 2 %
    assert 0.91 <= covered / 500 <= 0.975


def test_intervals_over_groups_cover_where_samples_are_correlated() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(60), 10)
    by_group = by_sample = 0
    for repeat in range(300):
        values = np.repeat(rng.normal(size=60), 10) + 0.3 * rng.normal(size=600)
        for chosen, add in ((groups, 1), (None, 0)):
            means = Resamples(600, chosen, num_resamples=300, seed=repeat).means(values)
            low, high = np.quantile(means, [0.025, 0.975])
            if add:
                by_group += low <= 0.0 <= high
            else:
                by_sample += low <= 0.0 <= high
    assert 0.90 <= by_group / 300 <= 0.98
    assert by_sample / 300 < 0.6  # pretending that samples are independent: far too narrow


@given(arrays.arrays(np.float64, st.integers(2, 40), elements=FINITE), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_identical_predictions_differ_by_exactly_zero(values: np.ndarray, seed: int) -> None:
    statistic = mean_of(values)
    found = difference(statistic, statistic, len(values), num_resamples=50, seed=seed)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert not found.excludes_zero


@given(
    arrays.arrays(np.float64, st.integers(2, 40), elements=FINITE),
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
)
@settings(max_examples=40, deadline=None)
def test_means_in_products_are_the_means_of_the_resamples(
    values: np.ndarray, seed: int, num_groups: int
) -> None:
    groups = np.arange(len(values)) * 7 % num_groups
    resamples = Resamples(len(values), groups, num_resamples=30, seed=seed)
    one_by_one = resamples.apply(mean_of(values))
    scale = float(np.abs(values).max()) + 1.0
    np.testing.assert_allclose(resamples.means(values), one_by_one, atol=1e-10 * scale)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_resample_holds_whole_groups_and_as_many_as_there_are(
    labels: list[int], seed: int
) -> None:
    groups = np.array(labels)
    sizes = {label: labels.count(label) for label in labels}
    for index in Resamples(len(labels), groups, num_resamples=10, seed=seed).indices():
        counts = np.bincount(index, minlength=len(labels))
        drawn = 0
        for label, size in sizes.items():
            times = counts[groups == label]
            assert len(set(times.tolist())) == 1  # all samples of a group, equally often
            drawn += int(times[0])
            assert len(times) == size
        assert drawn == len(sizes)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_seed_decides_everything(seed: int) -> None:
    values = np.random.default_rng(0).normal(size=50)
    first = interval(mean_of(values), 50, num_resamples=100, seed=seed)
    assert first == interval(mean_of(values), 50, num_resamples=100, seed=seed)
    assert first != interval(mean_of(values), 50, num_resamples=100, seed=seed + 1)


@given(arrays.arrays(np.float64, st.integers(3, 40), elements=FINITE), st.integers(-5, 5))
@settings(max_examples=40, deadline=None)
def test_a_higher_confidence_is_never_narrower(values: np.ndarray, shift: int) -> None:
    shifted = values + shift
    wide = interval(mean_of(shifted), len(values), num_resamples=80, confidence=0.99)
    narrow = interval(mean_of(shifted), len(values), num_resamples=80, confidence=0.8)
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_groups_widen_the_interval_of_correlated_samples() -> None:
    rng = np.random.default_rng(3)
    values = np.repeat(rng.normal(size=40), 25)
    groups = np.repeat(np.arange(40), 25)
    by_sample = interval(mean_of(values), 1000, num_resamples=500)
    by_group = interval(mean_of(values), 1000, groups, num_resamples=500)
    assert by_group.high - by_group.low > 3.0 * (by_sample.high - by_sample.low)


def test_resamples_without_a_number_are_dropped_and_counted() -> None:
    labels = np.array([1, 0, 0, 0])

    def needs_both_classes(index: np.ndarray) -> float:
        chosen = labels[index]
        if chosen.min() == chosen.max():
            raise ValueError("one class")
        return float(chosen.mean())

    found = interval(needs_both_classes, 4, num_resamples=400)
    expected_dropped = 400 * (0.75**4 + 0.25**4)
    assert abs((400 - found.num_used) - expected_dropped) < 60
    assert 0.25 <= found.low <= found.high <= 0.75


def test_a_metric_that_is_never_defined_gives_no_interval() -> None:
    found = interval(lambda index: math.nan, 5, num_resamples=10)
    assert found.num_used == 0 and math.isnan(found.low) and not found.excludes_zero


def test_compare_writes_the_document() -> None:
    rng = np.random.default_rng(0)
    observed = rng.normal(size=300)
    good = {"forecast": observed + 0.5 * rng.normal(size=300), "observed": observed}
    bad = {"forecast": observed + 1.5 * rng.normal(size=300), "observed": observed}
    month = np.repeat(np.arange(10), 30)
    found = compare(good, {"bad": bad, "same": good}, error, lambda p: month, num_resamples=200)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["schema"], found["split"], found["confidence"]) == (1, "test", 0.95)
    assert (found["num_samples"], found["num_groups"], found["num_resamples"]) == (300, 10, 200)
    model, rivals = found["metrics"]["mae"]["model"], found["metrics"]["mae"]["rivals"]
    assert model["low"] < model["value"] < model["high"] and model["num_dropped"] == 0
    assert rivals["bad"]["excludes_zero"] and rivals["bad"]["difference_high"] < 0
    assert rivals["bad"]["difference"] == model["value"] - rivals["bad"]["value"]
    same = rivals["same"]
    assert (same["difference"], same["difference_low"], same["difference_high"]) == (0, 0, 0)
    assert not same["excludes_zero"]
    assert {k: same[k] for k in model} == model


def test_pairing_narrows_the_difference() -> None:
    rng = np.random.default_rng(1)
    observed = np.zeros(200)
    hard = np.abs(rng.normal(size=200)) * 5  # some samples are hard for everybody
    model = {"forecast": hard, "observed": observed}
    rival = {"forecast": hard + 0.1, "observed": observed}
    entry = compare(model, {"rival": rival}, error, num_resamples=200)["metrics"]["mae"]
    gap = entry["rivals"]["rival"]
    assert gap["excludes_zero"]
    assert gap["difference_high"] - gap["difference_low"] < 0.01
    assert entry["model"]["high"] > entry["rivals"]["rival"]["low"]  # yet the two overlap


def test_a_metric_without_a_value_is_null_and_dropped() -> None:
    def metrics(predictions: dict[str, np.ndarray]) -> dict[str, float]:
        return {"mae": 1.0, "never": math.nan}

    found = compare({"forecast": np.ones(5)}, {}, metrics, num_resamples=20)
    assert found["metrics"]["never"]["model"] == {
        "value": None,
        "low": None,
        "high": None,
        "num_dropped": 20,
    }


def test_samples_of_unequal_length_are_resampled_whole() -> None:
    traces = np.array([np.arange(3.0), np.arange(5.0)], dtype=object)

    def metrics(predictions: dict[str, np.ndarray]) -> dict[str, float]:
        return {"length": float(np.mean([len(trace) for trace in predictions["trace"]]))}

    found = compare({"trace": traces}, {}, metrics, num_resamples=50)
    assert found["metrics"]["length"]["model"] == {
        "value": 4.0,
        "low": 3.0,
        "high": 5.0,
        "num_dropped": 0,
    }


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Resamples(3, np.arange(4)), "one for each of 3"),
        (lambda: Resamples(0), "nothing to resample"),
        (lambda: interval(lambda index: 0.0, 3, confidence=1.0), "confidence"),
        (lambda: Resamples(3).means(np.ones(4)), "4 values for 3"),
        (lambda: compare({"a": np.ones(3)}, {"b": {"a": np.ones(2)}}, error), "needs 3 samples"),
        (lambda: compare({}, {}, error), "empty"),
    ],
)
def test_wrong_shapes_are_refused_with_what_was_found(build, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()
