"""Part of a machine: as many devices as asked, levels that nest, and nothing made faster or slower.

A published run's machine keeps the same laws.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary import machines
from armillary.spec import Machine, SpecError

SOME = ("aurora", "frontier", "alps", "lumi_g", "gb200_nvl72", "fugaku", "dgx_1", "tpu_v5e_pod")


@st.composite
def parts(draw: st.DrawFn) -> tuple[Machine, int]:
    """A machine, and a number of devices that it can give."""
    machine = machines.load(draw(st.sampled_from(SOME)))
    node = machine.ranks_per_node
    whole = st.integers(1, machine.num_nodes).map(lambda nodes: nodes * node)
    return machine, draw(st.integers(1, node) | whole)


@given(parts())
def test_a_part_has_the_devices_that_were_asked_for(part: tuple[Machine, int]) -> None:
    machine, num_devices = part
    found = machines.with_num_devices(machine, num_devices)
    sizes = [level.num_ranks for level in found.levels]
    assert found.num_ranks == num_devices
    assert sizes[-1:] == ([num_devices] if num_devices > 1 else [])
    assert sizes == sorted(set(sizes))
    assert found.device == machine.device


@given(parts())
def test_whole_nodes_keep_their_links(part: tuple[Machine, int]) -> None:
    machine, num_devices = part
    found = machines.with_num_devices(machine, num_devices)
    whole = {level.name: level for level in machine.levels}
    for level in found.levels:
        assert level.latency_s == whole[level.name].latency_s
        assert level.link_bytes_per_s == whole[level.name].link_bytes_per_s


@pytest.mark.parametrize("name", SOME)
def test_the_whole_of_a_machine_is_the_machine(name: str) -> None:
    machine = machines.load(name)
    assert machines.with_num_devices(machine, machine.num_ranks) == machine


@pytest.mark.parametrize("num_devices", [0, -1, 13, 10**7])
def test_what_a_machine_cannot_give_is_refused(num_devices: int) -> None:
    with pytest.raises(SpecError) as caught:
        machines.with_num_devices(machines.load("aurora"), num_devices)
    assert caught.value.where == "devices"
    assert "use" in caught.value.fix


@given(st.integers(1, 16), st.integers(1, 40))
def test_a_published_run_may_use_part_of_each_node(per_node: int, num_nodes: int) -> None:
    num_devices = per_node * num_nodes if num_nodes > 1 else per_node
    found = machines.for_run("V100-SXM2-16GB", per_node, "OneFlow 4x8 V100", num_devices)
    assert found.name == "dlperf_v100"
    assert found.num_ranks == num_devices
    for level in found.levels:
        if level.num_ranks > found.ranks_per_node:
            # One card of 12.5 GB/s a node, shared by those who use it.
            assert level.link_bytes_per_s == pytest.approx(12.5e9 / per_node)


@pytest.mark.parametrize(
    ("gpu", "per_node", "machine", "num_devices", "name"),
    [
        ("A100-SXM-80GB", 8, "Selene (DGX A100)", 3072, "selene"),
        ("A100-SXM-40GB", 8, "DGX A100", 8, "dgx_a100_40"),
        ("A100-SXM-80GB", 8, "a cluster nobody knows", 64, "dgx_a100"),
        ("V100-SXM2-16GB", 8, "AWS p3.16xlarge", 16, "p3_16xlarge"),
        ("H100-96GB-HBM2e-500W (Grand Teton)", 8, "Meta Grand Teton", 128, "grand_teton"),
        ("Intel Max 1550 (PVC tile)", 12, "Sunspot (ALCF Aurora testbed)", 24, "aurora"),
        ("H100-SXM-80GB", 8, "Eos-dfw_n1452 (NVIDIA)", 11_616, "eos"),
        ("MI300X", 8, "8x MI300X node", 8, "mi300x_node"),
    ],
)
def test_a_published_run_finds_its_machine(
    gpu: str, per_node: int, machine: str, num_devices: int, name: str
) -> None:
    found = machines.for_run(gpu, per_node, machine, num_devices)
    assert (found.name, found.num_ranks) == (name, num_devices)


@pytest.mark.parametrize("gpu", ["A100-SXM", "abacus", ""])
def test_a_device_that_cannot_be_told_is_refused(gpu: str) -> None:
    with pytest.raises(SpecError):
        machines.find_device(gpu)
