"""Laws of collectives: free alone, never faster for more bytes or less rate, blind to numbering."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary import networks
from armillary.core import collectives as forms
from armillary.core import rounds
from armillary.core.collectives import Algorithm, LogGP
from armillary.networks.middleware import WAYS
from armillary.networks.reach import reaches
from armillary.networks.spans import units_touched
from armillary.networks.ways import parts
from armillary.spec.machine import CollectiveFit, Machine
from tests.contract import small_machines as small

COLLECTIVES = st.sampled_from(sorted(WAYS["NCCL"]))
BACKENDS = st.sampled_from(["nccl", "xccl", "gloo"])
TOPOLOGIES = st.sampled_from(sorted(networks.discover()))
SIZES = st.floats(1.0, 1e12)
UNITS = st.sampled_from([(4, 4), (8, 64), (12, 768), (6, 42)])  # ranks of a node, and of a group
ALGORITHMS = [one for one in vars(forms).values() if isinstance(one, Algorithm)]


RATES = st.floats(1e9, 1e12)


@st.composite
def machines(draw: Any) -> Machine:
    """A machine of two or three levels, of any library."""
    ranks_per_node, ranks_per_group = draw(UNITS)
    levels = [small.level("node", ranks_per_node, draw(TOPOLOGIES), draw(RATES))]
    if ranks_per_group > ranks_per_node:
        levels.append(small.level("group", ranks_per_group, draw(TOPOLOGIES), draw(RATES)))
    levels.append(
        small.level(
            "machine",
            ranks_per_group * 32,
            draw(TOPOLOGIES),
            draw(RATES),
            taper=draw(st.floats(1.0, 4.0)),
        )
    )
    return small.machine(levels, ranks_per_node, draw(BACKENDS))


SPANS = st.lists(
    st.tuples(st.integers(1, 16), st.sampled_from([1, 2, 3, 8, 12, 64])), min_size=1, max_size=3
)


@given(machines(), COLLECTIVES, SIZES, st.integers(1, 4096))
def test_a_group_of_one_is_free(
    machine: Machine, collective: str, size: float, stride: int
) -> None:
    assert networks.seconds(machine, collective, size, [(1, stride), (1, 1)]) == 0
    assert networks.explain(machine, collective, size, [(1, stride)]) == ()


@given(machines(), COLLECTIVES, SPANS)
def test_more_bytes_are_never_faster(
    machine: Machine, collective: str, spans: list[tuple[int, int]]
) -> None:
    times = networks.seconds(machine, collective, np.logspace(0, 12, 60), spans)
    assert (np.diff(times) >= 0).all()


@given(machines(), COLLECTIVES, SIZES, SPANS, st.floats(1.0, 100.0))
def test_more_bandwidth_is_never_slower(
    slow: Machine, collective: str, size: float, spans: list[tuple[int, int]], factor: float
) -> None:
    levels = [replace(one, link_bytes_per_s=factor * one.link_bytes_per_s) for one in slow.levels]
    fast = small.machine(levels, slow.ranks_per_node, slow.device.backend)
    faster = networks.seconds(fast, collective, size, spans)
    assert faster <= networks.seconds(slow, collective, size, spans) * (1 + 1e-12)


@given(machines(), COLLECTIVES, SIZES, SPANS)
def test_the_order_of_axes_changes_nothing(
    machine: Machine, collective: str, size: float, spans: list[tuple[int, int]]
) -> None:
    forward = networks.seconds(machine, collective, size, spans)
    backward = networks.seconds(machine, collective, size, spans[::-1])
    assert forward == pytest.approx(backward, rel=1e-12)


@given(machines(), COLLECTIVES, SIZES, st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_an_axis_in_two_is_the_same_axis(
    machine: Machine, collective: str, size: float, inner: int, outer: int, stride: int
) -> None:
    whole = networks.seconds(machine, collective, size, [(inner * outer, stride)])
    parts = [(outer, stride * inner), (inner, stride)]
    assert networks.seconds(machine, collective, size, parts) == pytest.approx(whole, rel=1e-12)


@given(machines(), COLLECTIVES, st.lists(SIZES, min_size=1, max_size=4), st.data())
def test_a_row_does_not_depend_on_its_neighbours(
    machine: Machine, collective: str, sizes: list[float], data: st.DataObject
) -> None:
    degrees = [data.draw(st.integers(1, 40)) for _ in sizes]
    strides = [data.draw(st.integers(1, 40)) for _ in sizes]
    axis = (np.array(degrees), np.array(strides))
    together = networks.seconds(machine, collective, np.array(sizes), [axis])
    alone = [
        float(networks.seconds(machine, collective, *row[:1], [row[1:]]))
        for row in zip(sizes, degrees, strides, strict=True)
    ]
    assert together.tolist() == alone


def test_columns_broadcast() -> None:
    degrees, sizes = np.array([1, 2, 8])[:, None], np.array([1e3, 1e6])
    assert networks.seconds(small.pods(), "all_reduce", sizes, [(degrees, 1)]).shape == (3, 2)
    assert networks.seconds(small.pods(), "all_reduce", 1e6, [(4, 1)]).shape == ()


@given(
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from([2, 3, 4, 6, 8, 12]),
    st.sampled_from([1, 2, 3, 5]),
)
def test_no_group_touches_more_units_than_said(
    degree: int, stride: int, unit: int, more: int
) -> None:
    levels = [
        small.level("node", unit, "switch", 1e9),
        small.level("machine", 10**6, "switch", 1e9),
    ]
    axes = [(np.array([degree]), np.array([stride]))]
    said = units_touched(levels, axes, 1)[0][0]
    length = degree * stride
    touched = [
        len({(block * length + start + k * stride) // unit for k in range(degree)})
        for block in range(3 * unit)
        for start in range(stride)
    ]
    assert max(touched) <= said
    if stride == 1 or unit % length == 0 or length % unit == 0:
        assert max(touched) == said


@given(st.sampled_from(ALGORITHMS), st.integers(2, 4096), SIZES)
def test_no_algorithm_sends_less_than_it_must(form: Algorithm, ranks: int, size: float) -> None:
    n = np.array([float(ranks)])
    assert form.steps(np.ones(1)) == form.sent(np.ones(1)) == 0
    assert form.steps(n) >= 1
    assert 0 < form.sent(n) <= 2 * np.log2(ranks) + 1
    infinite = form.seconds(n, size, 1e-6, np.inf)
    assert infinite == pytest.approx(form.steps(n) * 1e-6)


@pytest.mark.parametrize(
    ("form", "steps", "sent"),
    [
        (forms.RING_ALL_REDUCE, 14, 14 / 8),
        (forms.RABENSEIFNER, 6, 14 / 8),
        (forms.DOUBLING_ALL_REDUCE, 3, 3),
        (forms.DOUBLE_TREE, 6, 14 / 8),
        (forms.RING, 7, 7 / 8),
        (forms.DOUBLING, 3, 7 / 8),
        (forms.PAIRWISE, 7, 7 / 64),
        (forms.BRUCK, 3, 3 / 16),
        (forms.BINOMIAL, 3, 3),
        (forms.SCATTER_GATHER, 10, 14 / 8),
        (forms.NEIGHBOURS, 1, 1 / 8),
    ],
)
def test_eight_ranks_by_hand(form: Algorithm, steps: float, sent: float) -> None:
    eight = np.array([8.0])
    assert (form.steps(eight), form.sent(eight)) == (steps, pytest.approx(sent))


# What LogGOPSim computes event by event, with the parameters it is given by default, in ns.
LOGGOPS = LogGP(latency=2500, overhead=1500, gap=1000, gap_per_byte=6)


def test_the_simulator_that_plays_every_message_agrees() -> None:
    for form, ranks, size, played in (
        (rounds.RABENSEIFNER, 65_536, 2**20, 12_758_528),
        (rounds.RING_ALL_REDUCE, 1024, 2**20, 23_811_348),
        (rounds.DISSEMINATION, 65_536, 65_536, 6_379_360),
    ):
        assert rounds.folded_time(LOGGOPS, form, ranks, size) == played


# ------------------------------------------------------------------------- what was measured
# NCCL over Slingshot with libfabric, 2 nodes of 4 GH200: CSCS documentation, communication/nccl.md.
CSCS = {8: 17.9e-6, 2**16: 61e-6, 2**20: 164e-6, 2**27: 1916e-6}


@pytest.mark.parametrize(("size", "within"), [(8, 0.3), (2**16, 0.3), (2**20, 0.2), (2**27, 0.2)])
def test_two_nodes_of_alps(size: int, within: float) -> None:
    predicted = float(networks.seconds(small.alps(), "all_reduce", size, [(8, 1)]))
    assert predicted == pytest.approx(CSCS[size], rel=within)


# NCCL over InfiniBand. One H100 on each of 2 nodes, 400 Gbit/s, in place: nccl-tests issue 232.
TWO_H100 = {2**21: 93.35e-6, 2**22: 153.3e-6, 2**23: 227.8e-6, 2**24: 419.9e-6, 2**25: 808.2e-6}


@pytest.mark.parametrize("size", sorted(TWO_H100))
def test_two_ranks_over_infiniband(size: int) -> None:
    machine = small.machine([small.level("machine", 64, "fat_tree", 5e10, latency_s=2.7e-6)], 1)
    predicted = float(networks.seconds(machine, "all_reduce", size, [(2, 1)]))
    assert predicted == pytest.approx(TWO_H100[size], rel=0.2)


def test_a_ring_of_two_nodes_over_infiniband() -> None:
    """4 adapters of 200 Gbit/s a node and NCCL_ALGO=RING, in place: nccl-tests issue 252."""
    levels = [
        small.level("node", 4, "switch", 3e11, latency_s=6e-7),
        small.level("machine", 64, "fat_tree", 2.5e10, latency_s=2.7e-6),
    ]
    machine = small.machine(levels, 4)
    lying = reaches(machine, [np.array([2.0]), np.ones(1)], [None, None], np.array([8.0]))
    way = next(
        way
        for way in WAYS["NCCL"]["all_reduce"]
        if way.flow == "around" and way.protocol.name == "NCCL Simple"
    )
    for size, measured_s in ((2**29, 9676.9e-6), (2**31, 39357e-6), (2**33, 158561e-6)):
        predicted = parts(way, lying, np.array([8.0]), np.array([float(size)])).seconds
        assert float(predicted[0]) == pytest.approx(measured_s, rel=0.08)


def test_halving_in_levels_sends_each_byte_between_nodes_once() -> None:
    """Of a large tensor over 2 nodes of 8, each adapter carries an eighth out, once each way."""
    levels = [small.level("node", 8, "switch", 1e15), small.level("machine", 16, "fat_tree", 1e9)]
    machine = small.machine(levels, 8, "xccl")
    size = 2.0**40
    found = float(networks.seconds(machine, "all_reduce", size, [(16, 1)]))
    assert found == pytest.approx(2 * (1 / 2) * size / 8 / (0.96 * 1e9), rel=0.01)


def test_adapters_that_are_not_used_cost_a_quarter_of_the_rate_each() -> None:
    """One rank a node has one of the four adapters; four have all of them."""
    size = 2.0**33
    one, four = (
        networks.seconds(small.alps(), "all_reduce", size, [span]) for span in ((64, 4), (256, 1))
    )
    assert 3.0 < one / four < 4.5


FIT = CollectiveFit(
    degree=8, start_s=1e-5, bytes_per_s=3e11, root_s_per_sqrt_byte=5e-9, source="made up"
)


@given(SIZES)
def test_a_measured_collective_is_its_fit(size: float) -> None:
    machine = small.fitted({"all_gather_into_tensor": [FIT]})
    sent = size * 7 / 8
    expected = 1e-5 + sent / 3e11 + 5e-9 * np.sqrt(sent)
    found = networks.seconds(machine, "all_gather_into_tensor", size, [(8, 1)])
    assert found == pytest.approx(expected)
    terms = networks.explain(machine, "all_gather_into_tensor", size, [(8, 1)])
    assert sum(term.seconds for term in terms) == pytest.approx(expected)


def test_a_fit_made_on_faster_links_is_held_to_the_link() -> None:
    machine = small.fitted({"all_gather_into_tensor": [FIT]})
    slow = small.machine(
        [small.level("node", 8, "switch", 1e11, collectives={"all_gather_into_tensor": (FIT,)})],
        8,
    )
    size = 8e11
    assert networks.seconds(slow, "all_gather_into_tensor", size, [(8, 1)]) >= 7.0
    assert networks.seconds(machine, "all_gather_into_tensor", size, [(8, 1)]) < 3.0


def test_groups_between_two_fits_lie_between_them() -> None:
    two = CollectiveFit(degree=2, start_s=5e-6, bytes_per_s=2e11, source="made up")
    machine = small.fitted({"all_gather_into_tensor": [FIT, two]})
    starts = networks.seconds(machine, "all_gather_into_tensor", 1e-9, [(np.arange(1, 9), 1)])
    assert starts[[0, 1, 7]] == pytest.approx([0, 5e-6, 1e-5])
    assert (np.diff(starts) > 0).all()


def test_torus_neighbours_are_near_and_everyone_is_far() -> None:
    machine = small.machine([small.level("machine", 4096, "torus", 6e11)], 1)
    ring, everyone = (
        float(networks.seconds(machine, name, 2.0**44, [(4096, 1)]))
        for name in ("all_gather_into_tensor", "all_to_all_single")
    )
    # Sides of 16: a message goes 4 links along each of 3 dims; but each rank sends 1 / 4,096.
    assert everyone * 4096 / ring == pytest.approx(12, rel=0.1)


def test_between_groups_of_a_dragonfly_the_taper_holds() -> None:
    def between(network: str, taper: float) -> float:
        levels = [
            small.level("node", 4, "switch", 4e11),
            small.level("group", 64, network, 2.5e10),
            small.level("machine", 640, network, 2.5e10, taper=taper),
        ]
        machine = small.machine(levels, 4)
        return float(networks.seconds(machine, "send", 2.0**33, [(2, 64)]))

    full, tapered, detour = between("fat_tree", 1), between("fat_tree", 2), between("dragonfly", 2)
    assert full < tapered < detour


@pytest.mark.parametrize("size", [1.0, 1e9])
@pytest.mark.parametrize("collective", ["all_reduce", "broadcast"])
def test_latency_grows_with_the_group(collective: str, size: float) -> None:
    degrees = np.array([2, 8, 64, 512])
    assert (np.diff(networks.seconds(small.pods(), collective, size, [(degrees, 1)])) > 0).all()
