"""The order of samples: a permutation for any size, seed and epoch, and a fair one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from armillary.feeds import SampleOrder, mix

SIZES = st.integers(1, 3000)
SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 10**6)


@given(SIZES, SEEDS, EPOCHS)
def test_an_epoch_holds_every_sample_once(n: int, seed: int, epoch: int) -> None:
    found = SampleOrder(num_samples=n, seed=seed).at(epoch, np.arange(n))
    assert np.array_equal(np.sort(found), np.arange(n))


@given(SIZES, SEEDS, EPOCHS, st.data())
def test_a_position_holds_the_same_sample_whoever_asks(
    n: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    """Alone, among others, in any order: nothing is remembered."""
    order = SampleOrder(num_samples=n, seed=seed)
    asked = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), dtype=np.int64)
    whole = order.at(epoch, np.arange(n))
    assert np.array_equal(order.at(epoch, asked), whole[asked])
    assert asked.dtype == np.int64, "what was asked is left as it was"


@given(st.integers(20, 3000), SEEDS, EPOCHS)
def test_epochs_and_seeds_differ(n: int, seed: int, epoch: int) -> None:
    here = SampleOrder(num_samples=n, seed=seed).at(epoch, np.arange(n))
    next_epoch = SampleOrder(num_samples=n, seed=seed).at(epoch + 1, np.arange(n))
    next_seed = SampleOrder(num_samples=n, seed=seed + 1).at(epoch, np.arange(n))
    for other in (next_epoch, next_seed):
        assert np.mean(here == other) < 0.5


@given(st.integers(2**31, 2**62), SEEDS)
def test_a_huge_set_costs_what_is_asked_for(n: int, seed: int) -> None:
    positions = np.array([0, 1, n // 2, n - 1])
    found = SampleOrder(num_samples=n, seed=seed).at(0, positions)
    assert len(set(found.tolist())) == 4 and found.min() >= 0 and found.max() < n


@given(SIZES)
def test_without_shuffling_the_order_is_that_of_the_data(n: int) -> None:
    found = SampleOrder(num_samples=n, seed=3, shuffle=False).at(5, np.arange(n))
    assert np.array_equal(found, np.arange(n))


def _chi_square_per_degree(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum() / (counts.size - 1))


def test_every_sample_is_as_likely_at_every_position() -> None:
    """Over 1,000 epochs of 50 samples: chi-square a degree is 1, within 5 standard deviations.

    Rows and columns of the counts have fixed sums, which leaves (n - 1)^2 degrees of freedom.
    """
    order = SampleOrder(num_samples=50, seed=1)
    counts = np.zeros((50, 50))
    for epoch in range(1_000):
        counts[np.arange(50), order.at(epoch, np.arange(50))] += 1
    per_degree = _chi_square_per_degree(counts) * (50**2 - 1) / 49**2
    assert abs(per_degree - 1.0) < 5 * np.sqrt(2 / 49**2)


def test_neighbours_in_the_order_are_no_neighbours_in_the_data() -> None:
    """The step from one position to the next is as likely to be any, in 200 epochs of 1,009."""
    order = SampleOrder(num_samples=1009, seed=2)
    counts = np.zeros(1008)
    for epoch in range(200):
        found = order.at(epoch, np.arange(1009))
        np.add.at(counts, (found[1:] - found[:-1]) % 1009 - 1, 1)
    assert abs(_chi_square_per_degree(counts) - 1.0) < 5 * np.sqrt(2 / 1007)


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=4))
def test_a_mixed_seed_fits_every_generator(words: list[int]) -> None:
    assert 0 <= mix(*words) < 2**63


def test_mixed_seeds_do_not_meet() -> None:
    seeds = {mix(s, e, p) for s in range(20) for e in range(20) for p in range(100)}
    assert len(seeds) == 20 * 20 * 100
