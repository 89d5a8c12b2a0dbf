"""Do the links and ways of every topology join what they say, and carry what they should?"""

import numpy as np
import pytest

from armillary.networks.discovery import discover
from armillary.networks.door import PATTERNS, Pattern
from armillary.networks.joint import Joint, Trips, Ways
from tests.contract import small_machines as small

NAMES = sorted(discover())
SHAPES = {"minimal": {"is_adaptive": 0.0}, "adaptive": {}, "valiant": {"is_adaptive": 2.0}}


def joint(name: str, num_units: int = 16, unit_ranks: int = 2, **more: object) -> Joint:
    level = small.level("machine", num_units * unit_ranks, name, 1e10, taper=2.0, **more)
    return Joint(level=level, num_units=num_units, unit_ranks=unit_ranks)


def trips(one: Joint, source: np.ndarray, target: np.ndarray, pattern: Pattern = "pair") -> Trips:
    num = source.size
    return Trips(
        unit=np.zeros(num, np.int64),
        source=source,
        target=target,
        rank=np.zeros(num, np.int64),
        offered=np.full(num, 1e10),
        pattern=np.full(num, PATTERNS.index(pattern)),
    )


def all_pairs(num_units: int) -> tuple[np.ndarray, np.ndarray]:
    source, target = (one.reshape(-1) for one in np.indices((num_units, num_units)))
    return source[source != target], target[source != target]


def rows(ways: Ways, trip: int) -> np.ndarray:
    return np.flatnonzero(ways.trip == (trip if ways.bundle is None else ways.bundle[trip]))


@pytest.mark.parametrize("routing", sorted(SHAPES))
@pytest.mark.parametrize("name", NAMES)
def test_every_way_leads_from_its_source_to_its_target(name: str, routing: str) -> None:
    """What flows into a unit flows out again, but for the first and the last."""
    one, network = joint(name, shape=SHAPES[routing]), discover()[name]
    ends, capacities = network.ends(one), network.capacities(one)
    assert ends.shape == (capacities.size, 2)
    source, target = all_pairs(one.num_units)
    ways = network.ways(one, trips(one, source, target))
    for trip in range(0, source.size, 7):
        net = np.zeros(one.num_units + 2)
        for row in rows(ways, trip):
            start, end = ends[ways.link[row]]
            if start >= 0:
                net[start] += ways.share[row]
                net[end] -= ways.share[row]
            assert 0 < ways.share[row] <= 1
        if net.any():
            expected = np.zeros_like(net)
            expected[source[trip]], expected[target[trip]] = 1.0, -1.0
            assert net == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_leaves_a_unit_is_what_the_machine_file_gives_its_ranks(name: str) -> None:
    one, network = joint(name), discover()[name]
    ends, capacities = network.ends(one), network.capacities(one)
    rate = one.level.link_bytes_per_s / one.level.taper
    out = capacities[(ends[:, 0] == 3) & (ends[:, 1] != 3)].sum()
    shared = capacities[ends[:, 0] == -1].sum()
    if name == "pcie":
        assert shared == 2 * rate
    elif shared:
        assert shared == pytest.approx(rate * one.num_units * one.unit_ranks)
    else:
        assert out == pytest.approx(rate * one.unit_ranks)


@pytest.mark.parametrize("name", ["dragonfly", "mesh", "torus", "fat_tree"])
def test_the_cut_through_the_middle_is_that_of_the_closed_form(name: str) -> None:
    """All to all fills the links between two halves; a tree carries any pattern across."""
    one = joint(name, 64, 2, **({"shape": {"num_dims": 3.0}} if name == "torus" else {}))
    network = discover()[name]
    ends, capacities = network.ends(one), network.capacities(one)
    half = one.num_units // 2
    up = (ends[:, 0] >= 0) & (ends[:, 0] < half) & (ends[:, 1] >= half)
    cut = capacities[up].sum()
    pattern: Pattern = "exchange" if name == "fat_tree" else "all"
    units = np.array([float(one.num_units)])
    rate = float(network.bytes_per_s(one.level, pattern, units, one.num_units)[0])
    crossing = {"fat_tree": 1.0, "torus": 0.5}.get(name, half / (one.num_units - 1.0))
    assert cut == pytest.approx(rate * half * one.unit_ranks * crossing, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_more_bandwidth_is_wider_links(name: str) -> None:
    network = discover()[name]
    slow, fast = joint(name), joint(name)
    fast = Joint(
        level=small.level("machine", 32, name, 3e10, taper=2.0), num_units=16, unit_ranks=2
    )
    assert network.capacities(fast) == pytest.approx(3 * network.capacities(slow))


@pytest.mark.parametrize("name", NAMES)
def test_borders_are_links_of_the_unit(name: str) -> None:
    one, network = joint(name), discover()[name]
    units = np.arange(one.num_units)
    for is_outward in (True, False):
        border = network.border(one, units, is_outward)
        assert border.shape == units.shape
        if (border >= 0).any():
            end = 0 if is_outward else 1
            assert (network.ends(one)[border, end] == units).all()


def test_adaptive_routing_leaves_the_short_way_only_where_it_is_full() -> None:
    network = discover()["dragonfly"]
    one = joint("dragonfly", 32, 8)
    pair = float(network.capacities(one)[0])
    source = np.arange(32)
    light, heavy = (
        Trips(
            unit=np.zeros(32, np.int64),
            source=source,
            target=(source + 1) % 32,
            rank=np.zeros(32, np.int64),
            offered=np.full(32, rate),
            pattern=np.zeros(32, np.int64),
        )
        for rate in (pair, 8 * one.level.link_bytes_per_s)
    )
    assert network.ways(one, light).link.size == 32
    ways = network.ways(one, heavy)
    load = np.bincount(ways.link, ways.share, 32 * 32)
    # All to the next group: half of what a group has goes by the way over all others.
    assert load.max() == pytest.approx(2 / 31, rel=0.1)
