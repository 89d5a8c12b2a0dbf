"""Every axis does what it tells: a rank of each kind rehearsed, and held against the axes' tables.

No rank is started: the program is the real one, on torch's fake process group and fake tensors. So
meshes may be as large as they like, and all of it takes seconds.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from armillary import machines
from armillary.axes import discover
from armillary.models import read
from armillary.rehearse.program import differences, ranks_that_differ, record
from armillary.rehearse.program.build import Case, Folding
from armillary.rehearse.program.plans import check_machine, check_model
from armillary.rehearse.program.rank import _rehearse
from armillary.rehearse.program.repeats import CannotFold, read_folded
from armillary.rehearse.program.shortened import Short, told_again
from armillary.rehearse.program.sums import Part, Sum
from armillary.spec import Candidate, Layout, Plan, SpecError
from armillary.spec.record import Record
from armillary.step.recipe import Recipe, load_recipe
from tests.contract.allocated import allocated
from tests.parity.ranks import Ranks

SMALL = {"gpt": {"num_layers": "4"}, "moe": {"num_layers": "4"}, "cnn": {"num_blocks": "4"}}
BATCH_SIZE = 32


def small(name: str) -> Recipe:
    return load_recipe(name, SMALL[name])


def records_of(recipe: Recipe, layout: Layout, batch_size: int = BATCH_SIZE) -> list[Record]:
    """A record of a rank of every kind, with how many ranks it stands for."""
    return [
        replace(
            record(recipe, layout, kind.rank, global_batch_size=batch_size, load=kind.load),
            num_stands_for=kind.num_ranks,
        )
        for kind in ranks_that_differ(recipe, layout, global_batch_size=batch_size)
    ]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(discover()))
def test_every_axis_does_what_it_tells(name: str, precision: str) -> None:
    """What an average rank holds, and what all ranks send, at degree 2."""
    recipe = small({"expert": "moe", "sequence": "cnn"}.get(name, "gpt"))
    layout = Layout(degrees={name: 2}, precision=precision)
    found = differences(recipe, records_of(recipe, layout))
    assert not found, "\n".join(map(str, found))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt", "pipeline=2,data=2,sharded=2,tensor=2,micro_batch_size=2"),
        ("gpt", "pipeline=2,pipeline.schedule=zbv"),
        ("gpt", "data=4,sequence=2,tensor=2,recompute=full"),
        ("moe", "expert=4,sharded=2,micro_batch_size=2"),
        ("moe", "expert=2,tensor=2,precision=bfloat16"),
        ("moe", "sequence=2,tensor=2"),  # a router's choices [N, K], N cut by both
        ("moe capacity_factor=1.25", "sequence=2,expert=2"),
    ],
)
def test_products_of_axes_do_what_they_tell(name: str, words: str) -> None:
    name, *options = name.split()
    recipe = load_recipe(name, SMALL[name] | dict(option.split("=") for option in options))
    found = differences(recipe, records_of(recipe, Layout.parse(words)))
    assert not found, "\n".join(map(str, found))


def test_a_difference_is_told_with_its_module() -> None:
    """A message that was not told, in one block, is found there."""
    recipe, layout = small("gpt"), Layout.parse("sharded=2")
    [whole] = records_of(recipe, layout)
    lost = next(c for c in whole.collectives if c.module == "blocks.2")
    other = replace(whole, collectives=tuple(c for c in whole.collectives if c is not lost))
    found = differences(recipe, [other])
    assert {one.module for one in found} == {"blocks.2"}
    assert {one.unit for one in found} == {"messages", "bytes"}
    with pytest.raises(SpecError, match="of 1 ranks of 2"):
        differences(recipe, [replace(whole, num_stands_for=1)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_layers", "words", "rank"),
    [
        ("gpt", 9, "data=2,sharded=2,tensor=2,micro_batch_size=2", 1),
        ("gpt", 8, "sharded=4,sharded.prefetch=2,recompute=full", 1),
        ("gpt", 5, "data=2,micro_batch_size=8", 1),
        ("gpt", 10, "pipeline=2,sharded=2,micro_batch_size=2", 1),
        ("gpt", 12, "pipeline=4,data=2,micro_batch_size=1", 3),
        ("gpt", 18, "pipeline=2,sharded=2,tensor=2,micro_batch_size=2", 7),  # stages built short
        (
            "gpt",
            36,
            "pipeline=2,pipeline.schedule=interleaved_1f1b,sharded=2,micro_batch_size=2",
            3,
        ),
        ("gpt", 36, "pipeline=2,pipeline.schedule=zbv,micro_batch_size=4", 1),
        (
            "gpt",
            36,
            "pipeline=2,pipeline.schedule=interleaved_zero_bubble,sharded=2,micro_batch_size=4",
            3,
        ),
        ("gpt", 36, "pipeline=2,pipeline.schedule=dualpipev,micro_batch_size=4", 0),
        ("moe", 8, "expert=2,sharded=2", 1),
    ],
)
def test_folded_equals_unfolded(name: str, num_layers: int, words: str, rank: int) -> None:
    """Equal blocks that are not built or stand in, and equal micro batches, change nothing of a
    record.
    """
    recipe = load_recipe(name, {"num_layers": str(num_layers)})
    layout = Layout.parse(words)
    folded, whole = (
        record(recipe, layout, rank, global_batch_size=BATCH_SIZE, fold=fold)
        for fold in (True, False)
    )
    assert folded.num_folded > 0 and whole.num_folded == 0
    assert folded.peak == whole.peak and folded.most == whole.most
    assert folded.peak_at == whole.peak_at
    assert folded.flops_by_phase == whole.flops_by_phase
    as_set = [sorted(map(str, found.collectives)) for found in (folded, whole)]
    assert as_set[0] == as_set[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "rank"),
    [
        ("1f1b", 0),
        ("gpipe", 1),
        ("interleaved_1f1b", 3),
        ("looped_bfs", 3),  # backward passes begin with the last micro batch
        ("interleaved_zero_bubble", 0),
        ("zbv", 1),
        ("dualpipev", 2),
    ],
)
def test_few_micro_batches_tell_of_all(schedule: str, rank: int) -> None:
    """Of a pipeline's micro batches some are run, and every pass of the others is as one of them:
    what is held at the fullest moment is equal to the byte, and so are all messages.
    """
    recipe = load_recipe("gpt", {"num_layers": "8"})
    layout = Layout.parse(f"pipeline=4,pipeline.schedule={schedule},micro_batch_size=2")
    some, all_of_them = (
        record(recipe, layout, rank, global_batch_size=48, fold=fold) for fold in (True, False)
    )
    assert some.num_micro_batches_run <= 14 < all_of_them.num_micro_batches_run == 24
    assert some.peak == all_of_them.peak and some.most == all_of_them.most
    assert some.flops_by_phase == all_of_them.flops_by_phase
    as_set = [sorted(map(str, found.collectives)) for found in (some, all_of_them)]
    assert as_set[0] == as_set[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_layers", "words", "rank"),
    [
        # a unit of FSDP2 within a block is reduced when the stage's last pass has ended
        (18, "pipeline=2,expert=2,sharded=2,micro_batch_size=2", 7),
        (18, "pipeline=2,micro_batch_size=8", 0),
        (11, "expert=2,micro_batch_size=2", 1),
        (11, "sharded=2,micro_batch_size=4", 0),
    ],
)
def test_blocks_of_experts_are_built_short(num_layers: int, words: str, rank: int) -> None:
    """They are, although the first takes a balance that needs no gradient; what is held is the same
    but for a few bytes of such a balance.
    """
    recipe, layout = load_recipe("moe", {"num_layers": str(num_layers)}), Layout.parse(words)
    case = Case.of(recipe, layout, BATCH_SIZE, rank)
    folded, whole = (
        _rehearse(case, case.read(), rank, 1.0, [folding])
        for folding in (Folding.SHORT, Folding.NONE)
    )
    assert folded.num_folded > 0
    assert sorted(map(str, folded.collectives)) == sorted(map(str, whole.collectives))
    assert folded.flops_by_phase == whole.flops_by_phase
    assert folded.most == pytest.approx(whole.most, rel=1e-3)
    assert folded.peak_bytes == pytest.approx(whole.peak_bytes, rel=1e-3)


def test_a_run_is_not_told_by_a_block_that_does_otherwise() -> None:
    """What two blocks in the middle did must be the same, or the run is not built short."""
    short = Short(tuple(f"blocks.{i}" for i in range(9)))
    parts = [Part(path, Sum(flops=1)) for path in short.kept]
    assert [part.path for part in told_again(parts, short)] == list(short.paths)
    parts[3] = Part(short.kept[3], Sum(flops=2))
    with pytest.raises(CannotFold):
        told_again(parts, short)


def test_a_graph_read_folded_is_the_whole_graph() -> None:
    """Of a model of many equal blocks three are read, and the graph is the same."""
    import torch

    for name in ("gpt", "cnn"):
        recipe = load_recipe(name, {next(iter(SMALL[name])): "5"})
        batch = torch.utils.data.default_collate([recipe.data()["train"][i] for i in range(2)])
        module = recipe.model()

        def call(model: Any, recipe: Recipe = recipe, batch: Any = batch) -> Any:
            return recipe.loss(model, batch)

        assert read_folded(module, call, 2) == read(module, call, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt", ""),
        ("moe", "recompute=full"),
        ("gpt", "sharded=2,micro_batch_size=2"),
        ("gpt", "pipeline=2,micro_batch_size=2"),
        ("gpt", "tensor=2"),
        ("gpt", "data=2"),
        ("gpt", "sequence=2"),
    ],
)
def test_memory_is_what_a_real_step_takes(ranks: Ranks, name: str, words: str) -> None:
    """The peak within 5 % of the most that torch's allocator counts in a step on real ranks."""
    options = {"hidden_size": "128", "num_layers": "4"}
    layout = Layout.parse(words)
    real = ranks.run(layout.num_ranks, allocated, name, options, words, 8)
    for rank in {0, layout.num_ranks - 1}:
        found = record(load_recipe(name, options), layout, rank, global_batch_size=8)
        assert 0.95 * real[rank] <= found.peak_bytes <= 1.05 * real[rank]


def test_uneven_shards_are_ranks_that_differ() -> None:
    """Rows are shared out rounded up: the last of three ranks holds fewer of 64, and no head."""
    recipe, layout = small("gpt"), Layout.parse("sharded=3")
    kinds = ranks_that_differ(recipe, layout, global_batch_size=30)
    assert [(kind.rank, kind.num_ranks) for kind in kinds] == [(0, 2), (2, 1)]
    first, last = (record(recipe, layout, k.rank, global_batch_size=30) for k in kinds)
    assert first.peak["parameters"] > last.peak["parameters"]


def test_the_busiest_experts_are_a_kind_of_rank() -> None:
    recipe, layout = small("moe"), Layout.parse("expert=2")
    kinds = ranks_that_differ(recipe, layout, global_batch_size=8, busiest=1.5)
    even, busiest = (record(recipe, layout, 0, global_batch_size=8, load=k.load) for k in kinds)
    assert [kind.num_ranks for kind in kinds] == [1, 1]
    assert busiest.peak_bytes > even.peak_bytes and busiest.flops > even.flops


@pytest.mark.slow
def test_a_rank_of_sixty_thousand() -> None:
    """The last rank of a large mesh, whose records can be written and read."""
    recipe = load_recipe("gpt", {"num_layers": "20", "hidden_size": "256", "num_heads": "8"})
    layout = Layout.parse("pipeline=5,data=75,sharded=80,tensor=2,micro_batch_size=1")
    found = record(recipe, layout, 59_999, global_batch_size=6000 * 8)
    assert found.num_ranks == 60_000
    assert found.coordinates == {"pipeline": 4, "data": 74, "sharded": 79, "tensor": 1}
    assert Record.from_json(found.to_json()) == found


LOOKING = """
import torch
from torch import nn

class Looking(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        x = self.inner(x)
        if x.sum() > 0:
            x = -x
        return x

def model():
    return Looking()

def data():
    return {"train": [torch.ones(6)] * 8, "validation": [torch.ones(6)] * 8}

def loss(model, batch):
    return model(batch).square().mean()

def optimizer(params):
    return torch.optim.SGD(params, lr=0.1)
"""


@pytest.mark.parametrize(
    ("words", "code", "operator"),
    [
        ("", "if x.sum() > 0:", "aten._local_scalar_dense looks"),
        ("sharded=2", "if x.sum() > 0:", "aten._local_scalar_dense looks"),
        ("tensor=2", "if x[x > 0].sum() is None:", "torch.nonzero() looks"),
        ("", "if x.masked_select(x > 0) is None:", "aten::masked_select has no form without"),
        ("", "if x.detach().numpy() is None:", "numpy looks"),
    ],
)
def test_a_forward_that_looks_at_values_is_named(
    tmp_path: Path, words: str, code: str, operator: str
) -> None:
    path = tmp_path / "looking.py"
    path.write_text(LOOKING.replace("if x.sum() > 0:", code))
    with pytest.raises(SpecError) as refused:
        record(load_recipe(str(path)), Layout.parse(words), 0, global_batch_size=8)
    assert refused.value.where == f"{path}:12"
    assert refused.value.found.startswith(operator)
    assert code in refused.value.found


def test_a_dim_that_two_axes_cut_is_rehearsed_in_half_precision() -> None:
    """DTensor counts rows that two axes cut with a tensor that it reads, where a type changes."""
    layout = Layout.parse("sequence=2,tensor=2,precision=bfloat16")
    half, whole = (
        record(small("gpt"), one, 3, global_batch_size=4)
        for one in (layout, replace(layout, precision="float32"))
    )
    assert half.flops == whole.flops and half.peak_bytes < whole.peak_bytes


@pytest.mark.parametrize("rank", [-1, 2])
def test_there_is_no_such_rank(rank: int) -> None:
    with pytest.raises(SpecError, match=f"{rank} of 2"):
        record(small("gpt"), Layout.parse("data=2"), rank)


def plan(**changed: Any) -> Plan:
    layout = Layout.parse("data=2")
    device = machines.load("frontier").device
    best = Candidate(
        layout=layout,
        num_devices=2,
        predicted_step_s=1.0,
        predicted_memory_bytes=1.0,
        predicted_device_hours=1.0,
    )
    values: dict[str, Any] = {
        "layout": layout,
        "machine": "frontier",
        "model": "gpt",
        "num_parameters": 1,
        "num_devices": 2,
        "num_given": 2,
        "global_batch_size": 8,
        "objective": "time",
        "predicted_step_s": 1.0,
        "predicted_memory_bytes": 1.0,
        "memory_limit_bytes": float(device.memory_bytes),
        "best": best,
    }
    return Plan(**(values | changed))


def test_a_plan_for_another_model_or_machine_is_refused() -> None:
    assert check_machine(plan()).name == "frontier"
    with pytest.raises(SpecError, match="where it now has"):
        check_machine(plan(memory_limit_bytes=1.0))
    with pytest.raises(SpecError, match="200000 ranks on frontier"):
        check_machine(plan(layout=Layout.parse("data=200000")))
    with pytest.raises(SpecError, match="gpt of 1 parameters, where gpt has"):
        record(small("gpt"), plan(), 0)
    recipe = small("gpt")
    graph = read(recipe.model())
    check_model(plan(num_parameters=graph.num_parameters), graph, "gpt")
