"""Are placements chosen as torch chooses them, where only what matches is tried?"""

import itertools
import random
from typing import Any
from unittest import mock

import pytest
import torch

from armillary.spec import Layout
from tests.parity.ranks import Ranks

NUM_TRIED = {1: 4, 2: 16, 3: 3}  # by dims of the mesh: torch tries so many combinations
OPERATORS = {
    "aten.add.Tensor": 2,
    "aten.mul.Tensor": 2,
    "aten.mul_.Tensor": 2,
    "aten.addcmul.default": 3,
    "aten.neg.default": 1,
    "aten.sqrt.default": 1,
    "aten.sqrt_.default": 1,
    "aten.rsqrt.default": 1,
    "aten.mm.default": 2,
    "aten.cat.default": 2,
    "aten._foreach_mul_.List": 2,
    "aten._foreach_add.List": 2,
}
TAKES_LISTS = ("cat", "foreach")


def choices(words: str) -> list[tuple[Any, Any, Any]]:
    """What torch chooses for operators and placements of inputs: with matching, and without.

    Run on one rank: choosing sends nothing.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    from armillary.axes.matching import match_first
    from armillary.step.world import join

    found = []
    with join(Layout.parse(words), "cpu") as world:
        if world.rank:
            return []
        match_first()
        laid = [Replicate(), Shard(0), Shard(1), Partial()]
        assert world.mesh is not None
        num_dims = world.mesh.ndim
        ways = [*itertools.product(laid, repeat=num_dims)]
        drawn = random.Random(5)
        for name, count in OPERATORS.items():
            alike = [(way,) * count for way in drawn.sample(ways, NUM_TRIED[num_dims])]
            each = [tuple(drawn.choices(ways, k=count)) for _ in alike]
            for placements in alike + each:
                both = [_choice(name, placements, world.mesh, by) for by in (True, False)]
                found.append(((name, placements), *both))
    return found


def _choice(name: str, placements: Any, mesh: Any, matching: bool) -> Any:
    """How outputs lie and inputs are to lie, or what torch says is impossible."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
    from torch.distributed.tensor._op_schema import OpSchema
    from torch.distributed.tensor._ops import utils

    propagator = DTensor._op_dispatcher.sharding_propagator
    packet, _, overload = name.removeprefix("aten.").partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload)
    meta = TensorMeta(torch.Size((4, 4)), (4, 1), torch.float64)
    specs: Any = [DTensorSpec(mesh, way, tensor_meta=meta) for way in placements]
    if any(word in name for word in TAKES_LISTS):
        specs = [specs] if "cat" in name else [[spec] for spec in specs]
    info = propagator.op_to_schema_info_for_single_dim_strategy.get(op)
    info = info or propagator.op_to_schema_info.get(op)
    schema = OpSchema(op, tuple(specs), {}, schema_info=info)
    ours: Any = utils.expand_to_full_mesh_op_strategy
    if not matching:
        utils.expand_to_full_mesh_op_strategy = ours.__wrapped__
    try:
        made = propagator.propagate_op_sharding_non_cached(schema)
    except RuntimeError as error:
        return str(error)
    finally:
        utils.expand_to_full_mesh_op_strategy = ours
    asked = made.redistribute_schema
    return str(made.output_spec), made.needs_redistribute, str(asked and asked.args_schema)


@pytest.mark.parametrize("words", ["tensor=2", "data=2,tensor=2", "data=2,sequence=2,tensor=2"])
def test_what_is_chosen_is_what_torch_chooses(ranks: Ranks, words: str) -> None:
    """On every operator: where all inputs lie alike, and where each lies as it likes."""
    tried = ranks.run(Layout.parse(words).num_ranks, choices, words)[0]
    assert {name for (name, _), _, _ in tried} == set(OPERATORS)
    differ = [(case, ours, theirs) for case, ours, theirs in tried if ours != theirs]
    assert not differ, differ[0]
    assert any("in-place" in str(ours) for _, ours, _ in tried), "what torch refuses is refused"


def count_priced(words: str) -> list[tuple[int, int]]:
    """How often an input's way is priced for a sum of tensors that lie alike: ours, torch's."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._ops import utils

    from armillary.axes.matching import match_first
    from armillary.step.world import join

    counts = []
    with join(Layout.parse(words), "cpu") as world:
        match_first()
        price = utils.generate_redistribute_costs
        for way in [(Shard(0), Shard(1)), (Shard(1), Replicate())]:
            pair = []
            for matching in (True, False):
                with mock.patch.object(utils, "generate_redistribute_costs", wraps=price) as priced:
                    _choice("aten.add.Tensor", (way, way), world.mesh, matching)
                pair.append(priced.call_count)
            counts.append((pair[0], pair[1]))
    return counts


def test_little_is_priced(ranks: Ranks) -> None:
    for ours, theirs in ranks.run(4, count_priced, "data=2,tensor=2")[0]:
        assert 0 < ours <= 8 and theirs >= 4 * ours
