"""Laws of collectives that share the network."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary import machines, networks
from armillary.networks import Burst, contended_seconds
from armillary.networks.discovery import discover
from armillary.spec import SpecError
from armillary.spec.machine import Machine
from tests.contract import small_machines as small

COLLECTIVES = (
    "all_reduce",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "broadcast",
)
# Those whose flows are as even as the closed form takes them for; a tree's are not.
EVEN = ("all_gather_into_tensor", "all_to_all_single", "broadcast")
SIZE = 2.0**30


def nodes(network: str, num_nodes: int = 64, backend: str = "nccl", **more: Any) -> Machine:
    """Nodes of 8 behind a switch, on one level of `network`."""
    levels = [
        small.level("node", 8, "switch", 4.5e11, latency_s=6e-7),
        small.level("machine", 8 * num_nodes, network, 5e10, **more),
    ]
    return small.machine(levels, 8, backend)


def groups(machine: Machine, taper: float = 2.0) -> Machine:
    """The nodes of `machine` in groups of four, with a taper between groups."""
    node, last = machine.levels
    group = replace(last, name="group", num_ranks=32, taper=1.0)
    return replace(machine, levels=(node, group, replace(last, taper=taper)))


def one(machine: Machine, collective: str, *spans: tuple[int, int], size: float = SIZE) -> float:
    burst = Burst(collective=collective, bytes=size, spans=spans)
    return float(contended_seconds(machine, [burst]).seconds[0])


# ------------------------------------------------------------------------- alone: the closed form
@pytest.mark.parametrize("spans", [((8, 1),), ((512, 1),), ((64, 8),), ((4, 8), (8, 1))])
@pytest.mark.parametrize("backend", ["nccl", "xccl", "gloo"])
@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize("network", ["fat_tree", "dragonfly"])
def test_alone_it_is_the_closed_form(
    network: str, collective: str, backend: str, spans: tuple[tuple[int, int], ...]
) -> None:
    machine = nodes(network, backend=backend)
    expected = float(networks.seconds(machine, collective, SIZE, spans))
    # A double tree's busiest node sends 2 S, the mean of the closed form 2 (n - 1) / n S.
    is_tree = backend == "nccl" and collective == "all_reduce" and spans != ((8, 1),)
    nodes_of = 4 if spans[0] == (4, 8) else 64
    within = 1.01 * nodes_of / (nodes_of - 1) if is_tree else 1.01
    assert expected / 1.01 <= one(machine, collective, *spans) <= expected * within


@pytest.mark.parametrize("collective", EVEN)
@pytest.mark.parametrize("network", sorted(discover()))
def test_inside_a_node_it_is_the_closed_form_on_every_topology(
    network: str, collective: str
) -> None:
    levels = [
        small.level("node", 8, network, 1e11, shape={"num_dims": 3.0}),
        small.level("machine", 64, "fat_tree", 2.5e10),
    ]
    machine = small.machine(levels, 8)
    expected = float(networks.seconds(machine, collective, SIZE, [(8, 1)]))
    # A torus' closed form counts the way to oneself as one of all; of few units that shows.
    within = 8 / 7 if (network, collective) == ("torus", "all_to_all_single") else 1.0
    assert expected / 1.01 <= one(machine, collective, (8, 1)) <= expected * within * 1.01


def test_the_taper_of_a_dragonfly_is_that_of_the_closed_form() -> None:
    """A machine of 128 groups in which each sends to one other, or all to all."""
    levels = [
        small.level("node", 4, "switch", 1e12),
        small.level("group", 16, "dragonfly", 2.5e10),
        small.level("machine", 2048, "dragonfly", 2.5e10, taper=2.0),
    ]
    machine = small.machine(levels, 4)
    everywhere = float(networks.seconds(machine, "all_to_all_single", 2.0**34, [(2048, 1)]))
    found = one(machine, "all_to_all_single", (2048, 1), size=2.0**34)
    assert found == pytest.approx(everywhere, rel=0.01)
    shift = float(networks.seconds(machine, "batch_isend_irecv", SIZE, [(128, 16)]))
    assert one(machine, "batch_isend_irecv", (128, 16)) == pytest.approx(shift, rel=0.02)


def test_adaptive_routing_is_between_the_short_way_and_all_detours() -> None:
    def shift(is_adaptive: float) -> float:
        shape = {"is_adaptive": is_adaptive}
        machine = groups(nodes("dragonfly", 128, shape=shape))
        return one(machine, "batch_isend_irecv", (32, 32), size=2.0**34)

    minimal, adaptive, valiant = shift(0.0), shift(1.0), shift(2.0)
    assert adaptive <= valiant * 1.01
    assert minimal > 5 * adaptive


# ---------------------------------------------------------------------------------------- shared
BURSTS = st.lists(
    st.builds(
        Burst,
        collective=st.sampled_from(COLLECTIVES),
        bytes=st.sampled_from([1e4, 1e7, 1e9]),
        spans=st.sampled_from([((8, 1),), ((16, 1),), ((16, 8),), ((4, 32),), ((64, 2),)]),
    ),
    min_size=1,
    max_size=3,
)
MACHINES = st.builds(
    lambda network, backend, is_grouped: (
        groups(nodes(network, 16, backend)) if is_grouped else nodes(network, 16, backend)
    ),
    st.sampled_from(["fat_tree", "dragonfly"]),
    st.sampled_from(["nccl", "xccl"]),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(MACHINES, BURSTS, st.floats(1.0, 8.0))
def test_more_bandwidth_is_never_slower(
    machine: Machine, bursts: list[Burst], factor: float
) -> None:
    levels = [
        replace(level, link_bytes_per_s=factor * level.link_bytes_per_s) for level in machine.levels
    ]
    fast = replace(machine, levels=tuple(levels))
    slow_s = contended_seconds(machine, bursts).seconds
    fast_s = contended_seconds(fast, bursts).seconds
    assert (fast_s <= slow_s * 1.02).all()


@settings(max_examples=40, deadline=None)
@given(MACHINES, BURSTS, st.integers(0, 3))
def test_company_never_helps_and_the_same_seed_is_the_same_answer(
    machine: Machine, bursts: list[Burst], seed: int
) -> None:
    together = contended_seconds(machine, bursts, seed=seed)
    again = contended_seconds(machine, bursts, seed=seed)
    assert together.seconds.tolist() == again.seconds.tolist()
    assert together.loads == again.loads
    for burst, found in zip(bursts, together.seconds, strict=True):
        alone = contended_seconds(machine, [burst], seed=seed).seconds[0]
        assert found >= alone * 0.97
    assert all(load.busiest <= 1 + 1e-6 for load in together.loads)


@settings(max_examples=25, deadline=None)
@given(MACHINES, st.sampled_from(["fat_tree", "dragonfly"]), st.data())
def test_folded_is_unfolded(machine: Machine, network: str, data: st.DataObject) -> None:
    """One place of each node, or one node of all, stands for the others."""
    spans = data.draw(
        st.sampled_from(
            [[((8, 1),)], [((16, 8),)], [((4, 8),), ((4, 32),)], [((2, 1),), ((4, 32),)]]
        )
    )
    bursts = [
        Burst(collective=data.draw(st.sampled_from(COLLECTIVES)), bytes=1e8, spans=span)
        for span in spans
    ]
    order = np.random.default_rng(data.draw(st.integers(0, 9))).permutation(16)
    placement = (order[:, None] * 8 + np.arange(8)).reshape(-1)
    folded, every = (
        contended_seconds(machine, bursts, placement=placement, fold=fold, tolerance=1e-6)
        for fold in (True, False)
    )
    assert folded.seconds == pytest.approx(every.seconds, rel=0.02)
    for some, all_of in zip(folded.group_seconds, every.group_seconds, strict=True):
        assert some == pytest.approx(all_of, rel=0.05)
    for some_load, load in zip(folded.loads, every.loads, strict=True):
        assert some_load.bytes == pytest.approx(load.bytes)


@pytest.mark.parametrize("collective", EVEN)
def test_bytes_that_cross_are_those_of_the_algorithm(collective: str) -> None:
    """An all-gather of 8 ranks sends 7 / 8 of the tensor a rank, an all-to-all 7 / 64."""
    machine = nodes("fat_tree", 16)
    burst = Burst(collective=collective, bytes=SIZE, spans=((8, 1),))
    loads = contended_seconds(machine, [burst]).loads
    each = {"all_gather_into_tensor": 7 / 8, "all_to_all_single": 7 / 64, "broadcast": 1.0}
    assert loads[0].bytes == pytest.approx(128 * each[collective] * SIZE)
    assert loads[1].bytes == 0


def test_two_that_share_a_port_take_twice_as_long() -> None:
    machine = nodes("fat_tree", 16)
    burst = Burst(collective="all_gather_into_tensor", bytes=2.0**32, spans=((16, 8),))
    alone = contended_seconds(machine, [burst]).seconds[0]
    both = contended_seconds(machine, [burst, burst])
    assert both.seconds == pytest.approx([2 * alone] * 2, rel=0.05)
    assert both.held_by == ("machine",) * 2
    inside = Burst(collective="all_gather_into_tensor", bytes=2.0**32, spans=((8, 1),))
    beside = contended_seconds(machine, [burst, inside]).seconds
    assert beside[0] == pytest.approx(alone, rel=1e-6)


def test_placement_matters_where_the_network_is_tapered() -> None:
    machine = groups(nodes("fat_tree", 64), taper=8.0)
    burst = Burst(collective="all_gather_into_tensor", bytes=2.0**32, spans=((32, 1),))
    near = contended_seconds(machine, [burst]).seconds[0]
    order = np.arange(64).reshape(16, 4).T.reshape(-1)  # neighbours in the job are in four groups
    apart = (order[:, None] * 8 + np.arange(8)).reshape(-1)
    far = contended_seconds(machine, [burst], placement=apart).seconds[0]
    assert far > 3 * near


def test_other_jobs_take_their_share() -> None:
    machine = nodes("fat_tree", 16)
    burst = Burst(collective="all_gather_into_tensor", bytes=2.0**32, spans=((16, 8),))
    free, busy = (
        contended_seconds(machine, [burst], background=share).seconds[0] for share in (0.0, 0.5)
    )
    assert busy == pytest.approx(2 * free, rel=0.05)


def test_a_pipelines_last_stage_does_not_send() -> None:
    machine = nodes("fat_tree", 16)
    burst = Burst(collective="send", bytes=1e9, spans=((4, 32),))
    assert contended_seconds(machine, [burst]).loads[1].bytes == pytest.approx(96 * 1e9)
    closed = Burst(collective="batch_isend_irecv", bytes=1e9, spans=((4, 32),))
    assert contended_seconds(machine, [closed]).loads[1].bytes == pytest.approx(128 * 1e9 / 4)


def test_members_may_be_named() -> None:
    machine = nodes("fat_tree", 16)
    spans = Burst(collective="all_reduce", bytes=1e8, spans=((16, 8),))
    members = np.arange(8)[:, None] + 8 * np.arange(16)[None, :]
    named = Burst(collective="all_reduce", bytes=1e8, members=members)
    some = Burst(collective="all_reduce", bytes=1e8, members=members[:1])
    found = [contended_seconds(machine, [one]).seconds[0] for one in (spans, named, some)]
    assert found[0] == found[1] == pytest.approx(found[2], rel=0.01)


@pytest.mark.parametrize(
    ("burst", "more", "where"),
    [
        (Burst(collective="all_reduce", bytes=1, spans=((5, 1),)), {}, r"burst\.spans"),
        (
            Burst(collective="all_reduce", bytes=1, members=np.array([[0, 999]])),
            {},
            r"burst\.members",
        ),
        (Burst(collective="all_reduce", bytes=1), {"num_ranks": 999}, "num_ranks"),
        (Burst(collective="all_reduce", bytes=1), {"background": 1.0}, "background"),
        (Burst(collective="all_reduces", bytes=1), {}, r"transfer\.collective"),
    ],
)
def test_what_cannot_be_is_refused(burst: Burst, more: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError, match=where):
        contended_seconds(nodes("fat_tree", 16), [burst], **more)


def test_nothing_to_send_takes_no_time() -> None:
    burst = Burst(collective="all_reduce", bytes=0.0, spans=((8, 1),))
    alone = Burst(collective="all_reduce", bytes=1e9, spans=((1, 1),))
    found = contended_seconds(nodes("fat_tree", 16), [burst, alone])
    assert found.seconds.tolist() == [0.0, 0.0]
    assert found.slowdown.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["aurora", "meta_24k", "gb200_nvl72", "tpu_v4_pod", "summit"])
def test_real_machines_have_links(name: str) -> None:
    machine = machines.load(name)
    degree = machine.ranks_per_node * 4
    burst = Burst(collective="all_reduce", bytes=1e9, spans=((degree, 1),))
    found = contended_seconds(machine, [burst], num_ranks=degree * 16)
    assert 0.9 < found.slowdown[0] < 1.4
