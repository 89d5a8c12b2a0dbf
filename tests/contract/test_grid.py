"""A layout costs the same in a grid of many as alone: along dims left out nothing differs."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.machines import load
from armillary.models import families
from armillary.plan import software
from armillary.plan.folding import fold
from armillary.plan.grid import DIMS, Grid
from armillary.plan.offload import OFFLOADS
from armillary.plan.price import Priced, price
from armillary.plan.traffic import sent_along
from armillary.spec import SpecError

GPT = "gpt:layers=8,hidden=1024,heads=16,seq=1024,vocab=32000"
MOE = "moe:layers=8,hidden=1024,heads=16,seq=1024,vocab=32000,experts=8,expert_ffn=2048,chosen=2"
BATCH = 96
AXES = tuple(sorted(discover(), key=lambda name: discover()[name].order))


def a_grid(has_experts: bool) -> Grid:
    """All products of degrees 1, 2 and 4, with some of every choice."""
    degrees = (1, 2, 4)
    each = [degrees if axis != "expert" or has_experts else (1,) for axis in AXES]
    rows = np.array(np.meshgrid(*each, indexing="ij")).reshape(len(AXES), -1)
    half = rows.shape[1] // 2
    order = np.arange(rows.shape[1]) // (half + 1)
    return Grid(
        degrees=dict(zip(AXES, rows, strict=True)),
        orders=(AXES, ("pipeline", "expert", "data", "sequence", "sharded", "tensor")),
        order=order,
        micro_batch_sizes=np.array([1, 2, 4]),
        schedules=(("1f1b", "auto"), ("interleaved_1f1b", "2"), ("zbv", "auto")),
        recomputes=("none", "selective", "full"),
        zeros=("3", "1"),
        regions=(("whole", "whole"), ("cut", "vocabulary")),
        attentions=("ring", "heads"),
        precisions=("bfloat16", "float32"),
    )


def priced(model: str, grid: Grid) -> Priced:
    machine = load("dgx_a100")
    graph = families.parse(model)
    return price(graph, machine, software.load("armillary"), grid, global_batch_size=BATCH)


@pytest.mark.parametrize("model", [GPT, MOE])
def test_a_layout_in_a_grid_costs_what_it_costs_alone(model: str) -> None:
    grid = a_grid(has_experts=model is MOE)
    many = priced(model, grid)
    admitted = np.flatnonzero(np.isfinite(many.step_s))
    chosen = np.random.default_rng(0).choice(admitted, 60, replace=False)
    for index in chosen:
        row, micro_batch = np.unravel_index(index, grid.shape)[:2]
        layout = grid.layout(int(index))
        one = Grid.of(layout, AXES, int(grid.micro_batch_sizes[micro_batch]))
        alone = priced(model, one)
        assert alone.step_s.item() == pytest.approx(many.step_s.flat[index], rel=1e-9), layout
        assert alone.memory_bytes.item() == pytest.approx(many.memory_bytes.flat[index], rel=1e-9)
        assert grid.order[row] in (0, 1)


def test_the_terms_sum_up_to_the_step() -> None:
    grid = a_grid(has_experts=False)
    found = priced(GPT, grid)
    admitted = np.isfinite(found.step_s)
    for whole, parts in ((found.step_s, found.terms), (found.memory_bytes, found.memory)):
        total = sum(np.broadcast_to(part, grid.shape) for part in parts.values())
        np.testing.assert_allclose(total[admitted], whole[admitted], rtol=1e-12)


def test_what_lies_on_the_host_frees_the_device_and_takes_time() -> None:
    grid = replace(a_grid(has_experts=False), offloads=OFFLOADS)
    found = priced(GPT, grid)
    step_s, memory = found.step_s, found.memory_bytes
    usual, moved = step_s[..., :1], step_s[..., 1:]
    admitted = np.isfinite(moved)
    assert (moved >= usual)[admitted].all()
    before = np.broadcast_to(memory[..., :1], moved.shape)[admitted]
    assert (memory[..., 1:][admitted] <= before).all()
    assert (memory[..., 1:][admitted] < before).any()
    plain = priced(GPT, replace(grid, offloads=("none",)))
    np.testing.assert_allclose(plain.step_s[..., 0], usual[..., 0], rtol=1e-12)
    np.testing.assert_allclose(plain.memory_bytes[..., 0], memory[..., 0], rtol=1e-12)


def test_a_faster_link_to_the_host_is_never_slower() -> None:
    machine, graph = load("dgx_a100"), families.parse(GPT)
    grid = replace(a_grid(has_experts=False), offloads=OFFLOADS, precisions=("bfloat16",))

    def step_s(factor: float) -> NDArray[np.float64]:
        host = replace(machine.host, link_bytes_per_s=factor * machine.host.link_bytes_per_s)
        other = replace(machine, host=host)
        program = software.load("armillary")
        return price(graph, other, program, grid, global_batch_size=BATCH).step_s

    slow, fast = step_s(1.0), step_s(4.0)
    assert (fast <= slow).all() and (fast < slow).any()


def test_a_machine_with_an_unknown_link_to_its_host_is_refused() -> None:
    machine = load("dgx_a100")
    bare = replace(machine, host=replace(machine.host, link_bytes_per_s=0.0))
    grid = replace(a_grid(has_experts=False), offloads=OFFLOADS)
    with pytest.raises(SpecError, match="link_bytes_per_s"):
        price(families.parse(GPT), bare, software.load("armillary"), grid, global_batch_size=BATCH)


def test_an_axis_is_asked_about_no_more_than_it_reads() -> None:
    """What a message costs over the grid is what its axis tells of every layout alone."""
    grid = a_grid(has_experts=True)
    graph = fold(families.parse(MOE))
    table, shape = grid.table(DIMS, BATCH)
    for axis in discover().values():
        told = defaultdict(float)
        for transfer in axis.traffic(graph, table):
            key = (transfer.collective, transfer.group, transfer.hidden_behind, transfer.carries)
            sent = transfer.bytes * transfer.per_step * graph.times(transfer.path)
            told[key] = told[key] + np.broadcast_to(sent, table.num_layouts).reshape(shape)
        found = defaultdict(float)
        for one in sent_along(axis, graph, grid, BATCH):
            transfer = one.transfer
            key = (transfer.collective, transfer.group, transfer.hidden_behind, transfer.carries)
            found[key] = found[key] + one.bytes * one.per_step
        for key, sent in told.items():
            whole = np.broadcast_to(found[key], shape)
            np.testing.assert_allclose(whole, sent, rtol=1e-9, err_msg=f"{axis.name} {key}")
