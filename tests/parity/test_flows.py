"""Are the fair rates and ends of flows in arrays those of a plain loop over flows and links?"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.core.flows import Routes, Table, max_min_rates, play

Dense = list[dict[int, float]]  # of each flow its links and their shares


@st.composite
def cases(draw: Any) -> tuple[Routes, Dense, np.ndarray]:
    """Flows over a few links, some of them by way of bundles."""
    num_links, num_bundles = draw(st.integers(1, 8)), draw(st.integers(0, 3))
    num_flows = draw(st.integers(1, 12))
    shares = st.sampled_from([1.0, 0.5, 0.25])
    links = st.integers(0, num_links - 1)
    bundles = [
        draw(st.dictionaries(links, shares, min_size=1, max_size=3)) for _ in range(num_bundles)
    ]
    direct = []
    for _ in range(num_flows):
        own = draw(st.dictionaries(links, shares, min_size=1, max_size=4))
        if num_bundles and draw(st.booleans()):
            own[num_links + draw(st.integers(0, num_bundles - 1))] = draw(shares)
        direct.append(own)
    dense = []
    for own in direct:
        whole: dict[int, float] = {}
        for column, share in own.items():
            parts = {column: 1.0} if column < num_links else bundles[column - num_links]
            for link, part in parts.items():
                whole[link] = whole.get(link, 0.0) + share * part
        dense.append(whole)
    capacity = np.array([draw(st.floats(1.0, 10.0)) for _ in range(num_links)])
    routes = Routes(
        num_flows=num_flows,
        num_links=num_links,
        direct=_table(direct),
        bundles=_table(bundles),
        num_bundles=num_bundles,
    )
    return routes, dense, capacity


def _table(rows: Dense) -> Table:
    entries = [
        (row, column, share) for row, one in enumerate(rows) for column, share in one.items()
    ]
    row, column, share = zip(*entries, strict=True) if entries else ((), (), ())
    return Table.of(row, column, share)


def plain_rates(flows: Dense, capacity: np.ndarray, active: set[int]) -> list[float]:
    """Progressive filling as the textbook has it: all rise together until a link is full."""
    rates, left, open_flows = [0.0] * len(flows), capacity.copy(), set(active)
    while open_flows:
        load = np.zeros(len(capacity))
        for flow in open_flows:
            for link, share in flows[flow].items():
                load[link] += share
        room = np.where(load > 0, left / np.where(load > 0, load, 1.0), np.inf)
        rise = room.min()
        for flow in open_flows:
            rates[flow] += rise
        left -= rise * load
        full = {int(link) for link in np.flatnonzero(room <= rise * (1 + 1e-12))}
        open_flows = {flow for flow in open_flows if not full & set(flows[flow])}
    return rates


@given(cases())
def test_rates_are_those_of_the_textbook(case: tuple[Routes, Dense, np.ndarray]) -> None:
    routes, dense, capacity = case
    expected = plain_rates(dense, capacity, set(range(len(dense))))
    assert max_min_rates(routes, capacity) == pytest.approx(expected, rel=1e-9)


@given(cases(), st.floats(0.0, 0.5))
def test_no_link_is_overfull_however_coarse(
    case: tuple[Routes, Dense, np.ndarray], tolerance: float
) -> None:
    routes, _, capacity = case
    rates = max_min_rates(routes, capacity, tolerance)
    assert (routes.loads(rates) <= capacity * (1 + 1e-9)).all()
    exact = max_min_rates(routes, capacity)
    assert rates.min() >= exact.min() * (1 - tolerance) - 1e-12


def plain_ends(
    flows: Dense, capacity: np.ndarray, amounts: list[float], teams: list[int], turns: list[int]
) -> list[float]:
    """Every end is an event; a flow starts when its team's earlier turns are over."""
    left, ends, now = dict(enumerate(amounts)), [0.0] * len(flows), 0.0
    while left:
        active = {
            f for f in left if not any(teams[g] == teams[f] and turns[g] < turns[f] for g in left)
        }
        rates = plain_rates(flows, capacity, active)
        step = min(left[flow] / rates[flow] for flow in active)
        now += step
        for flow in active:
            left[flow] -= rates[flow] * step
        for flow in [one for one in active if left[one] <= 1e-9 * amounts[one]]:
            ends[flow] = now
            del left[flow]
    return ends


@settings(max_examples=60)
@given(cases(), st.data())
def test_ends_are_those_of_a_plain_loop(
    case: tuple[Routes, Dense, np.ndarray], data: st.DataObject
) -> None:
    routes, dense, capacity = case
    num = len(dense)
    amounts = [data.draw(st.sampled_from([1.0, 2.0, 7.5])) for _ in range(num)]
    teams = [data.draw(st.integers(0, 2)) for _ in range(num)]
    turns = [data.draw(st.integers(0, 2)) for _ in range(num)]
    played = play(
        routes, capacity, np.array(amounts), np.array(teams), np.array(turns), tolerance=0.0
    )
    expected = plain_ends(dense, capacity, amounts, teams, turns)
    assert played.finish_s == pytest.approx(expected, rel=1e-6)
    carried = np.zeros(len(capacity))
    for flow, amount in zip(dense, amounts, strict=True):
        for link, share in flow.items():
            carried[link] += share * amount
    assert played.carried == pytest.approx(carried)


@settings(max_examples=60)
@given(cases(), st.data())
def test_events_that_are_joined_are_late_by_the_tolerance_at_most(
    case: tuple[Routes, Dense, np.ndarray], data: st.DataObject
) -> None:
    routes, _, capacity = case
    amounts = np.array([data.draw(st.floats(1.0, 3.0)) for _ in range(routes.num_flows)])
    exact = play(routes, capacity, amounts, tolerance=0.0).finish_s.max()
    coarse = play(routes, capacity, amounts, tolerance=0.05).finish_s.max()
    assert exact * (1 - 1e-9) <= coarse <= exact * 1.2


def test_flows_without_links_end_at_once() -> None:
    routes = Routes(num_flows=2, num_links=1, direct=Table.of([0], [0]))
    assert max_min_rates(routes, np.array([2.0])).tolist() == [2.0, np.inf]
    assert play(routes, np.array([2.0]), np.array([4.0, 4.0])).finish_s.tolist() == [2.0, 0.0]
