"""Laws of failures and costs: the interval is the best one, and more ranks lose more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.core import cost, failures

SAVES = st.floats(0.1, 600.0)
BETWEEN = st.floats(1800.0, 1e7)
RESTARTS = st.floats(0.0, 1200.0)


@given(SAVES, BETWEEN, RESTARTS, st.floats(0.2, 5.0))
def test_no_other_interval_is_much_better(
    saves: float, between: float, restart: float, factor: float
) -> None:
    best = float(failures.daly_interval_s(saves, between))
    ours = failures.goodput(best, saves, restart, between)
    other = failures.goodput(best * factor, saves, restart, between)
    assert ours >= other * (1 - 5e-3)


@given(SAVES, BETWEEN)
def test_the_interval_is_young_s_where_saving_is_short(saves: float, between: float) -> None:
    young = float(failures.young_interval_s(saves, between))
    daly = float(failures.daly_interval_s(saves, between))
    assert daly + saves >= young * (1 - 1e-12)
    assert daly == pytest.approx(young, rel=0.7 * np.sqrt(2 * saves / between) + 1e-9)


@given(SAVES, BETWEEN, RESTARTS, st.floats(1.01, 10.0))
def test_rarer_failures_and_faster_saves_leave_more(
    saves: float, between: float, restart: float, factor: float
) -> None:
    def left(saves: float, between: float) -> float:
        interval = failures.daly_interval_s(saves, between)
        return float(failures.goodput(interval, saves, restart, between))

    assert 0 <= left(saves, between) <= left(saves, between * factor) <= 1
    assert left(saves, between) <= left(saves / factor, between) + 2e-3


def test_a_machine_that_never_fails_loses_nothing() -> None:
    between = failures.between_failures_s(0.0, 1024)
    assert np.isinf(between) and np.isinf(failures.daly_interval_s(60.0, between))
    assert failures.goodput(np.inf, 60.0, 600.0, between) == 1.0
    assert failures.goodput(0.0, 0.0, 600.0, 1e9) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("devices", "saves", "restart", "expected"),
    [(60_000, 60, 600, 0.6685), (60_000, 10, 120, 0.885), (16_384, 60, 600, 0.853)],
)
def test_jobs_as_large_as_those_that_published_their_failures(
    devices: int, saves: float, restart: float, expected: float
) -> None:
    """419 unexpected stops of 16,384 devices in 54 days: 50,700 hours of one device between."""
    between = failures.between_failures_s(50_700.0, devices)
    interval = failures.daly_interval_s(saves, between)
    assert failures.goodput(interval, saves, restart, between) == pytest.approx(expected, abs=5e-4)


@given(st.integers(1, 10**7), st.floats(0.0, 0.2))
def test_the_slowest_of_many_grows_as_the_root_of_a_logarithm(count: int, spread: float) -> None:
    slow, twice = failures.slowest_of(count, spread), failures.slowest_of(2 * count, spread)
    assert 1.0 <= slow <= twice
    if count > 1000:  # twice as many ranks wait hardly longer
        assert twice - 1 <= (slow - 1) * 1.06


def test_the_slowest_is_as_drawn() -> None:
    drawn = np.random.default_rng(0).normal(1.0, 0.02, (400, 1000)).max(axis=1).mean()
    assert drawn <= failures.slowest_of(1000, 0.02) <= drawn * 1.02


@given(st.integers(1, 10**6), st.floats(1e-3, 1e3), st.floats(0.0, 1.0))
def test_energy_is_between_idle_and_busy(devices: int, step_s: float, share: float) -> None:
    def joules(busy_s: float) -> float:
        return float(
            cost.energy_j(
                devices, step_s, busy_s, power_w=400, idle_power_w=60, other_w=100, pue=1.2
            )
        )

    assert joules(0) == pytest.approx(1.2 * devices * 160 * step_s)
    assert joules(0) <= joules(share * step_s) <= joules(step_s) * (1 + 1e-12)
    assert joules(step_s) == pytest.approx(1.2 * devices * 500 * step_s)


def test_money_is_of_device_hours_or_else_of_energy() -> None:
    hours = cost.device_hours(8, 3600.0, 0.8)
    assert hours == pytest.approx(10.0)
    assert cost.usd(hours, 2.5) == pytest.approx(25.0)
    assert cost.usd(hours, 0.0, 7.2e6, 0.3) == pytest.approx(0.6)
    assert cost.usd(hours, 0.0) == 0.0
