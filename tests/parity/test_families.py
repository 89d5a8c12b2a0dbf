"""Is a family, told by its sizes alone, what reading and tracing the torch module finds?"""

from functools import cache

import numpy as np
import pytest

from armillary.axes import discover
from armillary.models import families, read, trace
from armillary.spec import Layout, ModelGraph
from armillary.spec.layouts import Layouts
from tests.parity.cases.family_cases import CASES, SAMPLES, batch, loss, words

TOLD_APART = {"name", "segments", "unsplit"}  # the last in other words
EXACT = ("flops", "backward_flops", "saved_bytes", "unscaled_saved_bytes", "parameter_bytes")
NEAR = {
    "read_bytes": 0.03,
    "written_bytes": 0.03,
    "backward_read_bytes": 0.03,
    "backward_written_bytes": 0.05,
    "num_kernels": 0.2,  # also of what is made once a call, such as the angles of a rotation
    "num_backward_kernels": 0.1,
}


@cache
def both(case: str) -> tuple[ModelGraph, ModelGraph]:
    """The family's graph and the module's."""
    name, sizes, build = CASES[case]
    return families.parse(words(name, sizes)), trace(build(), loss, batch(), SAMPLES)


@pytest.mark.parametrize("case", CASES)
def test_all_that_an_axis_reads_is_the_same(case: str) -> None:
    family, module = (graph.to_dict() for graph in both(case))
    for name in family.keys() - TOLD_APART:
        assert in_order(family[name]) == in_order(module[name]), name


@pytest.mark.parametrize("case", CASES)
def test_a_trace_reads_what_read_does(case: str) -> None:
    _, _, build = CASES[case]
    plain = read(build(), lambda model: loss(model, batch()), SAMPLES).to_dict()
    traced = both(case)[1].to_dict()
    assert {k: v for k, v in traced.items() if k != "segments"} == {
        k: v for k, v in plain.items() if k != "segments"
    }


@pytest.mark.parametrize("case", CASES)
def test_what_is_computed_and_kept_is_the_same(case: str) -> None:
    family, module = both(case)
    assert {size: family.total(size) for size in EXACT} == {s: module.total(s) for s in EXACT}


@pytest.mark.parametrize("case", CASES)
def test_what_is_moved_is_about_the_same(case: str) -> None:
    family, module = both(case)
    for size, most in NEAR.items():
        assert family.total(size) == pytest.approx(module.total(size), rel=most), size


@pytest.mark.parametrize("case", CASES)
def test_blocks_are_folded_alike(case: str) -> None:
    found = [
        [(s.path, s.repeats, s.paths, s.after) for s in graph.segments] for graph in both(case)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("case", CASES)
def test_products_are_the_same_and_cut_alike(case: str) -> None:
    family, module = (products(graph) for graph in both(case))
    assert family == module


@pytest.mark.parametrize("case", ["gpt", "llama", "moe", "deepseek"])
def test_every_axis_answers_alike(case: str) -> None:
    degrees = [
        {"data": 2, "tensor": 2},
        {"tensor": 4, "sharded": 2},
        {"pipeline": 2, "sequence": 2},
        {"tensor": 3},
        {"sequence": 4, "data": 2},
    ]
    table = Layouts.of(
        *(Layout(degrees=row) for row in degrees), num_samples=8, num_micro_batches=4
    )
    family, module = both(case)
    for axis in discover().values():
        one, two = axis.divides(family, table), axis.divides(module, table)
        assert np.array_equal(one.parameters, two.parameters), axis.name
        refused = [
            sorted((str(r.reason), r.refused.tolist()) for r in axis.admits(graph, table))
            for graph in (family, module)
        ]
        assert [told for _, told in refused[0]] == [told for _, told in refused[1]], axis.name
        sent = [
            sorted(
                (t.collective, t.group, t.path, t.bytes.tolist(), t.per_step.tolist())
                for t in axis.traffic(graph, table)
            )
            for graph in (family, module)
        ]
        assert sent[0] == sent[1], axis.name


def in_order(value: object) -> object:
    """Lists of documents by their content; an order that says nothing is none."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sorted(value, key=str)
    return value


def products(graph: ModelGraph) -> list[tuple[object, ...]]:
    """Every product and attention: its module, sizes and cut."""
    return sorted(
        (
            op.path.replace("q_out", "q"),
            *(op.name, op.rows, op.columns, op.inner, op.batch, op.cut, op.experts, op.flops),
        )
        for segment in graph.segments
        for op in segment.ops
        if op.flops
        for _ in range(op.count)
    )
