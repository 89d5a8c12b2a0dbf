"""An allocation with something wrong in it: each check names it, and none names what is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from armillary.core.medians import Median, median_of
from armillary.spec import SpecError
from armillary.train.doctor import findings, store, transport
from armillary.train.doctor.allocation import refuse_shared_devices
from armillary.train.doctor.facts import Facts
from armillary.train.doctor.findings import DOUBTFUL, GOOD, NOT_TRIED, WRONG, Check
from armillary.train.doctor.timing import less_disturbed_s, node_rounds


def ranks(num_nodes: int = 2, a_node: int = 4) -> list[Facts]:
    """Ranks as they should be: each its cores and its device, nodes one after the other."""
    return [
        Facts(
            rank=node * a_node + local,
            node=f"n{node}",
            host=f"n{node}",
            local_rank=local,
            local_world_size=a_node,
            cores=(2 * local, 2 * local + 1),
            num_cores=2 * a_node,
            device=f"gpu-{node}-{local}",
            device_name="GH200",
            clock_hz=2e9,
            interfaces={"eth0": (f"10.0.0.{node}", 1.25e8), "hsn0": (f"10.1.0.{node}", 2.5e10)},
        )
        for node in range(num_nodes)
        for local in range(a_node)
    ]


def changed(which: dict[int, dict[str, object]]) -> list[Facts]:
    return [replace(one, **which.get(one.rank, {})) for one in ranks()]  # type: ignore[arg-type]


def everywhere(**changes: object) -> list[Facts]:
    return [replace(one, **changes) for one in ranks()]  # type: ignore[arg-type]


def cyclic() -> list[Facts]:
    """srun -m cyclic: neighbours on different nodes."""
    return [replace(one, node=f"n{one.rank % 2}", local_rank=one.rank // 2) for one in ranks()]


CASES: dict[str, tuple[Callable[[list[Facts]], Check], list[Facts], str, str]] = {
    "two with one local rank": (
        findings.local_ranks,
        changed({5: {"local_rank": 0}}),
        WRONG,
        "n1: 2 ranks have local rank 0",
    ),
    "fewer than the launcher says": (
        findings.local_ranks,
        everywhere(local_world_size=8),
        WRONG,
        "has 4 ranks, the launcher says 8",
    ),
    "uneven nodes": (
        findings.local_ranks,
        [replace(one, local_world_size=None) for one in ranks()][:7],
        DOUBTFUL,
        "1 of 3 ranks",
    ),
    "cyclic": (findings.order, cyclic(), WRONG, "different nodes"),
    "all on one core": (findings.affinity, everywhere(cores=(0,)), WRONG, "n0: 4 ranks on 1 core"),
    "unbound": (
        findings.affinity,
        everywhere(cores=tuple(range(8))),
        DOUBTFUL,
        "4 ranks on 8 cores, not bound",
    ),
    "overlapping": (
        findings.affinity,
        changed({1: {"cores": (1, 2)}}),
        DOUBTFUL,
        "n0: the cores of",
    ),
    "one device for two": (
        findings.devices,
        changed({6: {"device": "gpu-1-1"}}),
        WRONG,
        "n1: 2 ranks on gpu-1-1",
    ),
    "two kinds of device": (
        findings.devices,
        changed({6: {"device_name": "A100"}}),
        DOUBTFUL,
        "1 A100",
    ),
    "slow interface": (
        lambda facts: findings.network_used("eth0", facts),
        ranks(),
        DOUBTFUL,
        "hsn0 has 25 GB/s",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_named(name: str) -> None:
    judge, facts, state, words = CASES[name]
    found = judge(facts)
    assert (found.state, words in found.found) == (state, True), found
    assert found.fix
    assert judge(ranks()).state == GOOD or name == "slow interface"


def test_nobody_finds_fault_with_what_is_right() -> None:
    assert findings.network_used("hsn0", ranks()).state == GOOD
    assert findings.names({"n0": [], "n1": []}, 2).state == GOOD
    assert findings.clocks({"n0": (0.0, 0.0), "n1": (0.002, 1e-4)}).state == GOOD
    assert findings.devices(everywhere(device="")).state == GOOD


def test_ranks_that_share_a_device_leave_before_they_send() -> None:
    refuse_shared_devices(ranks())
    with pytest.raises(SpecError, match="n1: 2 ranks on gpu-1-1"):
        refuse_shared_devices(changed({6: {"device": "gpu-1-1"}}))


def test_names_and_clocks() -> None:
    unknown = findings.names({"n0": [], "n1": ["n0"]}, 2)
    assert unknown.state == DOUBTFUL and "n1 does not know n0" in unknown.found
    off = findings.clocks({"n0": (0.0, 0.0), "n1": (-42.0, 1e-4)})
    assert off.state == DOUBTFUL and "n1 is -42 s off" in off.found


def steady(value: float) -> Median:
    return median_of([value * (1 + 0.001 * (i % 5)) for i in range(30)])


def test_a_slow_rank_is_named_and_a_noisy_one_is_not() -> None:
    facts = ranks()
    medians = {rank: steady(1.0) for rank in range(8)}
    assert findings.slow_ranks("alone", medians, facts).state == GOOD
    noisy = median_of([1.0] * 14 + [1.5] * 16)
    assert noisy.value > 1.4 and noisy.low <= 1.0
    assert findings.slow_ranks("alone", medians | {5: noisy}, facts).state == GOOD
    found = findings.slow_ranks("alone", medians | {5: steady(1.5)}, facts)
    assert found.state == WRONG and "n1 (rank 5): 1.50 times" in found.found


def test_what_ran_beside_one_round_is_not_held_against_a_device() -> None:
    disturbed, quiet = [3.0] * 30, [1.0] * 30
    assert less_disturbed_s([disturbed, quiet]) == less_disturbed_s([quiet, disturbed]) == quiet


def test_of_two_nodes_the_slow_one_is_named() -> None:
    """Half of all ranks are slow then; the upper of the two middle ranks is one of them."""
    facts = ranks()
    medians = {rank: steady(1.0 if rank < 4 else 1.5) for rank in range(8)}
    found = findings.slow_ranks("alone", medians, facts)
    assert found.state == WRONG and "n1 (rank 4): 1.50 times" in found.found
    assert "n0" not in found.found


def test_a_slow_node_has_two_slow_links() -> None:
    rates = {(f"n{i}", f"n{(i + 1) % 6}"): steady(20e9) for i in range(6)}
    assert findings.slow_links(rates).state == GOOD
    slow = {pair: steady(5e9) if "n3" in pair else rate for pair, rate in rates.items()}
    found = findings.slow_links(slow)
    assert found.state == WRONG and found.found.startswith("slow node: n3;")
    one = findings.slow_links(rates | {("n1", "n2"): steady(5e9)})
    assert one.state == WRONG and "slow node" not in one.found and "n1 to n2" in one.found
    assert findings.slow_links({("a", "b"): steady(1.0)}).state == NOT_TRIED


def test_a_missing_plug_in_is_found() -> None:
    """CSCS's own figures, with and without it."""
    with_it = findings.fabric(steady(122.6e9), 131e9, "Alps", "all_reduce")
    without = findings.fabric(steady(5.4e9), 131e9, "Alps", "all_reduce")
    assert with_it.state == GOOD and without.state == WRONG
    assert "24.2 times slower" in without.found and "aws-ofi-nccl" in without.fix
    assert findings.fabric(steady(50e9), 131e9, "Alps", "all_reduce").state == DOUBTFUL


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("nid1:7:9 [0] NCCL INFO Using network AWS Libfabric\n", GOOD),
        ("nid1:7:9 [0] NCCL INFO Using network Socket\n", WRONG),
        ("nid1:7:9 [0] NCCL INFO cudaDriverVersion 12080\n", NOT_TRIED),
    ],
)
def test_nccls_own_words(said: str, state: str) -> None:
    assert transport._judged(said).state == state


def test_every_node_sends_and_receives_once() -> None:
    for count in range(2, 12):
        rounds = node_rounds(list(range(0, 4 * count, 4)))
        pairs = [pair for one in rounds for pair in one]
        assert sorted(a for a, _ in pairs) == sorted(b for _, b in pairs)
        assert len({a for a, _ in pairs}) == len(pairs) == count
        assert all(len({rank for pair in one for rank in pair}) == 2 * len(one) for one in rounds)


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    assert store.address_of("s3://bucket/x") == ("localhost", 9000)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert store.address_of("s3://bucket/x") == ("s3.amazonaws.com", 443)
    fault, _ = store.knock("http://127.0.0.1:1/")
    assert fault
    answers = {"n0": ("", 0.01), "n1": (fault, 0.0)}
    found = store.store_check("http://me:hunter2222@127.0.0.1:1/", answers)
    assert found.state == DOUBTFUL and "n1: " in found.found and "hunter2222" not in found.found
    folder = Path("runs")
    unseen = store.folder_check(folder, {"n0": ("", 1.0, 1.0), "n1": ("No such file", 0.0, 0.0)})
    assert unseen.state == WRONG and "n1: No such file" in unseen.found
