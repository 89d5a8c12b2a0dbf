"""Medians of timings: their intervals hold what they claim, and say nothing where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.core.medians import median_of

SAMPLES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50)


@given(SAMPLES, st.floats(0.1, 10))
def test_a_median_lies_in_its_interval_and_scales(samples: list[float], scale: float) -> None:
    found = median_of(samples)
    assert found.low <= found.value <= found.high
    assert min(samples) <= found.low and found.high <= max(samples)
    scaled = median_of([scale * one for one in samples])
    assert scaled.value == pytest.approx(scale * found.value)
    rate = found.inverse(8.0)
    assert rate.low <= rate.value <= rate.high


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of 400 sets of 40 skewed samples, 95 % within what 400 draws allow."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        found = median_of(rng.exponential(size=40))
        held += found.low <= math.log(2) <= found.high
    assert 0.90 <= held / 400 <= 0.99


def test_nothing_measured_is_no_number() -> None:
    found = median_of([])
    assert math.isnan(found.value) and found.num_samples == 0
