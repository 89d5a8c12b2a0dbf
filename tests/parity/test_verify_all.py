"""Which layouts `verify --all` proves, what it says of them, and what makes them cheap."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from armillary.axes import discover
from armillary.spec import Layout
from armillary.step.recipe import load_recipe
from armillary.verify.check import (
    EQUAL,
    REFUSED,
    WRONG,
    Finding,
    as_verified,
    count_micro_batches,
)
from armillary.verify.matrix import layouts, markdown, refusals, table, threes
from armillary.verify.prepare import prepare
from armillary.verify.program import run
from tests.parity.ranks import Ranks


def test_all_layouts_are_every_one_two_and_three_axes_once() -> None:
    axes_of = [frozenset(f.degrees) for f in layouts(8) if not f.options]
    assert len({str(layout) for layout in layouts(8)}) == len(layouts(8))
    pairs = [names for names in axes_of if len(names) == 2]
    triples = [names for names in axes_of if len(names) == 3]
    count = len(discover())
    assert len(pairs) == len(set(pairs)) == count * (count - 1) / 2
    assert len(triples) == len(set(triples)) == count * (count - 1) * (count - 2) / 6
    assert all(layout.num_ranks <= 8 for layout in layouts(8))
    assert max(len(layout.degrees) for layout in layouts(4)) == 2


def of_threes(state: Callable[[set[str]], str]) -> list[Finding]:
    return [
        Finding(layout=layout, state=state(set(layout.degrees)))
        for layout in layouts(8)
        if len(layout.degrees) == 3
    ]


def test_threes_are_told_in_few_lines() -> None:
    """Proven sets of three that have a rule are one line; a wrong one comes first, by itself."""
    lost = {"data", "sharded", "tensor"}
    head, *rows = threes(
        {
            "plain": of_threes(lambda axes: REFUSED if "expert" in axes else EQUAL),
            "routed": of_threes(lambda axes: EQUAL),
            "odd": of_threes(lambda axes: WRONG if axes == lost else REFUSED),
        }
    )
    others = [name for name in table({})[0][1:] if name != "expert"]
    assert rows[0] == ["data, sharded, tensor", "WRONG: odd; equal: plain, routed"]
    assert ["expert and any two of " + ", ".join(others), "routed"] in rows
    [head, *rows] = threes({"routed": of_threes(lambda axes: EQUAL)})
    assert rows == [["any three of " + ", ".join(table({})[0][1:]), "routed"]]
    assert "any three of `pipeline`, `data`" in markdown([head, *rows])
    assert threes({"routed": []}) == []
    few = of_threes(lambda axes: EQUAL if axes == lost else REFUSED)
    assert threes({"odd": few})[1:] == [["data, sharded, tensor", "odd"], ["all others", "refused"]]


def test_a_reason_is_told_once_with_its_layouts() -> None:
    def refused(words: str, reason: str) -> Finding:
        return Finding(layout=Layout.parse(words), state=REFUSED, reason=reason)

    found = [
        refused("tensor=4", "layout.tensor: degree 4 does not divide num_heads 2"),
        refused("expert=2", "layout.expert: degree 2 for a model without experts"),
        refused("expert=4", "layout.expert: degree 4 for a model without experts"),
        Finding(layout=Layout.parse("data=2"), state=EQUAL),
    ]
    assert refusals(found) == [(found[1].reason, ["expert=2", "expert=4"])] + [
        (found[0].reason, ["tensor=4"])
    ]


@pytest.mark.parametrize("words", ["pipeline=2", "pipeline=4", "data=2,pipeline=2"])
def test_stages_are_proven_on_two_micro_batches_each(words: str) -> None:
    layout = Layout.parse(words)
    as_run = as_verified(layout, 16)
    assert count_micro_batches(as_run, 16) == 2 * layout.degree("pipeline")
    given = as_verified(replace(layout, micro_batch_size=1), 16)
    assert given.micro_batch_size == 1, "what a layout says itself is left"


def inferred(words: str) -> tuple[list[str], int]:
    """The dtypes of sums with 1, 1.0, True and 1 again, and how many answers are kept by then."""
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
    from torch.distributed.tensor._op_schema import OpSchema

    from armillary.step.world import join
    from armillary.verify.shapes import INFER, KNOWN, keep_shapes

    keep_shapes()
    infer: Any = getattr(DTensor._op_dispatcher.sharding_propagator, INFER)
    meta = TensorMeta(torch.Size((7, 3)), (3, 1), torch.int64)
    with join(Layout.parse(words), "cpu") as world:
        assert world.mesh is not None
        spec = DTensorSpec(world.mesh, (Replicate(),), tensor_meta=meta)
        schemas = [OpSchema(torch.ops.aten.add.Tensor, (spec, n), {}) for n in (1, 1.0, True, 1)]
        return [str(infer(schema).dtype) for schema in schemas], len(getattr(infer, KNOWN))


def num_meshes_kept() -> int:
    """Meshes that a warm rank still holds, after what runs by itself there was collected."""
    import gc

    from torch.distributed import DeviceMesh

    gc.collect()
    return sum(type(each) is DeviceMesh for each in gc.get_objects())


def test_a_warm_rank_keeps_no_mesh_of_a_layout(ranks: Ranks) -> None:
    """Each would keep its groups, with their threads and sockets, as long as the pool lives.

    What another test left in the pool before is not counted.
    """
    prepared = prepare(load_recipe("moe", {}), num_steps=1)
    before = ranks.run(4, num_meshes_kept)
    for words in ("pipeline=2,data=2", "sequence=2,tensor=2"):
        layout = as_verified(Layout.parse(words), prepared.program.batch_size)
        ranks.run(layout.num_ranks, run, prepared.program, layout)
        kept = ranks.run(layout.num_ranks, num_meshes_kept)
        assert all(now <= then for now, then in zip(kept, before, strict=True)), (words, kept)


def test_a_shape_is_worked_out_once_over_meshes(ranks: Ranks) -> None:
    first, num_first = ranks.run(2, inferred, "tensor=2")[0]
    again, num_again = ranks.run(2, inferred, "data=2")[0]
    assert first == again == ["torch.int64", "torch.float32", "torch.int64", "torch.int64"]
    assert num_first == num_again, "another mesh is nothing new"
