"""Batch norm over ranks: gradients and running statistics are those of the whole batch."""

from typing import Any

import pytest

from armillary.axes import admit, discover
from armillary.spec import Layout, ModelGraph, SpecError
from armillary.spec.layouts import Layouts
from tests.parity.ranks import Ranks, RanksFailed
from tests.parity.runs import Bench, distance, largest_relative

TOLERANCE = 1e-10
LAYOUTS = ("data=2", "data=4", "sharded=2", "sharded=4", "data=2,sharded=2")


@pytest.mark.parametrize("momentum", [0.3, 0.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_gives_the_serial_numbers(bench: Bench, layout: str, momentum: float) -> None:
    """27 samples by 8: the last step has fewer than 4. The parameters hold the statistics too."""
    ours, theirs = (
        bench.train("batch_norm_maps", f"{words}precision=float64", momentum=momentum)
        for words in (f"{layout},", "")
    )
    assert largest_relative(ours.losses, theirs.losses) <= TOLERANCE
    assert largest_relative(ours.column("grad_norm"), theirs.column("grad_norm")) <= TOLERANCE
    found, wanted = ours.parameters(), theirs.parameters()
    assert "norm.running_var" in wanted and "untracked.running_var" not in wanted
    assert distance(found, wanted) <= TOLERANCE
    for mine, other in zip(ours.evaluations, theirs.evaluations, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=TOLERANCE)


def _step(words: str, num_samples: int, kind: str = "", over_ranks: bool = True) -> dict[str, Any]:
    """All gradients and buffers after one step over `num_samples` samples, on every rank."""
    from unittest import mock

    import torch
    from torch.distributed.tensor import DTensor

    from armillary.axes import compose
    from armillary.axes.batch.ranks import note_samples
    from armillary.feeds import Share
    from armillary.step.parallel import apply_layout
    from armillary.step.world import join
    from tests.parity.cases import batch_norm_maps as case

    torch.manual_seed(0)
    model: Any = case.model().double()
    if kind == "SyncBatchNorm" and words:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    rows = torch.utils.data.default_collate(case.data()["train"][:num_samples])
    rows = {name: tensor.double() for name, tensor in rows.items()}
    unchanged = mock.patch.object(compose, "norm_over_ranks", lambda *args: None)
    with join(Layout.parse(words), "cpu") as world:
        if over_ranks:
            apply_layout(model, world, Layout.parse(words))
        else:
            with unchanged:
                apply_layout(model, world, Layout.parse(words))
        share = Share(index=world.batch_index, count=world.batch_count)
        (mine,) = share.micro_batches(0, num_samples)
        note_samples(len(mine))
        part = {name: t[mine if len(mine) else slice(1)] for name, t in rows.items()}
        (case.loss(model, part) * (len(mine) * world.batch_count / num_samples)).backward()
        note_samples(1)
        found = {name: p.grad for name, p in model.named_parameters()}
        found |= dict(model.named_buffers())
        return {
            name: (t.full_tensor() if isinstance(t, DTensor) else t).double().numpy()
            for name, t in found.items()
        }


def _farthest(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    assert ours.keys() == theirs.keys()
    least = 0.01 * max(abs(t).max() for t in theirs.values())
    return max(
        float(abs(ours[name] - t).max() / max(abs(t).max(), least)) for name, t in theirs.items()
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_samples", [5, 3])
def test_shares_may_differ_and_be_empty(ranks: Ranks, layout: str, num_samples: int) -> None:
    (theirs,) = ranks.run(1, _step, "", num_samples)
    for ours in ranks.run(Layout.parse(layout).num_ranks, _step, layout, num_samples):
        assert _farthest(ours, theirs) <= TOLERANCE


def test_torchs_own_form_is_taken_over(ranks: Ranks) -> None:
    (theirs,) = ranks.run(1, _step, "", 5)
    assert _farthest(ranks.run(2, _step, "data=2", 5, "SyncBatchNorm")[0], theirs) <= TOLERANCE


def test_the_comparison_sees_statistics_of_one_rank(ranks: Ranks) -> None:
    (theirs,) = ranks.run(1, _step, "", 8)
    assert _farthest(ranks.run(2, _step, "data=2", 8, "", False)[0], theirs) > 0.05


def _norm_of_a_wide_input(cut: str) -> float:
    """How far a norm of DTensors cut along some dim is from that of the whole; the worst of all."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from armillary.axes.batch.norm import norm_over_ranks

    placement = {"samples": Shard(0), "channels": Shard(1), "rows": Shard(2)}.get(cut, Replicate())
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    try:
        mesh = dist.init_device_mesh("cpu", (2,), mesh_dim_names=("sequence",))
        whole = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
        scale = torch.randn(3, 4, 5, dtype=torch.float64)
        serial, norm = (torch.nn.BatchNorm1d(4).double() for _ in range(2))
        (serial(whole) * scale).sum().backward()
        norm_over_ranks(norm, mesh)
        part = distribute_tensor(whole.detach(), mesh, [placement]).requires_grad_()
        out: Any = norm(part)
        (out * distribute_tensor(scale, mesh, out.placements)).sum().backward()
        assert part.grad is not None and whole.grad is not None
        pairs = [(out.full_tensor(), serial(whole)), (part.grad.full_tensor(), whole.grad)]
        pairs += [(norm.weight.grad, serial.weight.grad), (norm.bias.grad, serial.bias.grad)]
        return max(float((a - b).abs().max()) for a, b in pairs)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("cut", ["samples", "channels", "rows", "nothing"])
def test_a_dtensor_is_normed_as_the_whole(ranks: Ranks, cut: str) -> None:
    assert max(ranks.run(2, _norm_of_a_wide_input, cut)) <= 1e-12


GRAPH = ModelGraph(
    name="m",
    num_parameters=10,
    parameter_bytes=40,
    has_batch_norm=True,
    batch_norms={"norm": 3},
)


def test_several_micro_batches_are_refused(ranks: Ranks, bench: Bench) -> None:
    admit(Layout.parse("data=2,sharded=2"), GRAPH)
    for words, num_micro_batches in (("data=2", 2), ("data=2,pipeline=2", 1)):
        table = Layouts.of(Layout.parse(words), num_micro_batches=num_micro_batches)
        (refusal,) = discover()["data"].admits(GRAPH, table)
        assert refusal.refused.tolist() == [True] and "micro batch" in str(refusal.reason)
    bench.train("batch_norm_maps", "micro_batch_size=4")
    with pytest.raises(RanksFailed, match=r"micro batches for a model with batch norm \(norm\)"):
        bench.train("batch_norm_maps", "data=2,micro_batch_size=2")


def _collectives(words: str) -> dict[str, int]:
    import torch
    from torch.distributed.tensor.debug import CommDebugMode

    from armillary.step.parallel import apply_layout
    from armillary.step.world import join
    from tests.parity.cases import batch_norm_maps as case

    layout = Layout.parse(words)
    rows = torch.utils.data.default_collate(case.data()["train"][:4])
    with join(layout, "cpu") as world:
        model, _ = apply_layout(case.model(), world, layout)
        for _ in range(2):
            case.loss(model, rows).backward()
        with CommDebugMode() as counted:
            case.loss(model, rows).backward()
        found = counted.get_comm_counts()
        return {str(name).rpartition(".")[2].strip("_"): n for name, n in found.items() if n}


@pytest.mark.parametrize("words", ["data=2", "sharded=2", "data=2,sharded=2"])
def test_the_axes_send_what_they_say(ranks: Ranks, words: str) -> None:
    from armillary.models import read
    from tests.parity.cases import batch_norm_maps as case

    names = {
        "all_gather_into_tensor": "allgather_base",
        "reduce_scatter_tensor": "reduce_scatter_base",
        "all_reduce": "allreduce",
    }
    layout = Layout.parse(words)
    graph = read(case.model())
    assert graph.batch_norms == {"norm": 4, "untracked": 4, "head_norm": 3}
    said: dict[str, int] = {}
    for axis in layout.degrees:
        for transfer in discover()[axis].traffic(graph, Layouts.of(layout)):
            if transfer.per_step[0]:
                name = names[transfer.collective]
                said[name] = said.get(name, 0) + int(transfer.per_step[0])
    for found in ranks.run(layout.num_ranks, _collectives, words):
        assert found == said
    assert not [
        t for t in discover()["data"].traffic(GRAPH, Layouts.of(Layout())) if t.per_step.any()
    ]


def test_the_bytes_of_statistics() -> None:
    """Mean, squares and count of 3 channels from 4 ranks, and two sums a channel backward."""
    table = Layouts.of(Layout.parse("data=2,sharded=2"))
    found = [
        (t.collective, t.group, t.bytes.tolist())
        for t in discover()["data"].traffic(GRAPH, table)
        if t.path == "norm" and t.per_step.any()
    ]
    assert found == [
        ("all_gather_into_tensor", ("data", "sharded"), [4.0 * 7 * 4]),
        ("all_reduce", ("data", "sharded"), [4.0 * 6]),
    ]


def test_what_is_refused_is_said_with_a_way_out() -> None:
    table = Layouts.of(Layout.parse("sharded=2"), num_micro_batches=3)
    (refusal,) = discover()["sharded"].admits(GRAPH, table)
    assert isinstance(refusal.reason, SpecError)
    assert "or sharded=1, or group norm" in str(refusal.reason)
