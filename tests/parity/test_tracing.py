"""Is what a trace tells of a step true of the step that torch really runs?"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from armillary.models import trace, tracing
from armillary.models.store import load_graph
from armillary.recipes import gnn, gpt, moe
from armillary.spec import ModelGraph, SpecError
from tests.parity.cases.family_cases import batch, loss
from tests.parity.cases.family_modules import Gpt
from tests.parity.cases.nets import Bottleneck, UNet, Words

SIZES = ("flops", "backward_flops", "saved_bytes", "read_bytes", "written_bytes", "num_kernels")


def square(model: nn.Module, given: torch.Tensor) -> torch.Tensor:
    return model(given).square().mean()


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *(Bottleneck(8, 4, 2), Bottleneck(16, 4, 1)))


def small_gpt() -> nn.Module:
    return Gpt(layers=2, hidden=64, heads=4, seq=16, vocab=512)


MODELS: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "gpt": (small_gpt, loss, batch()),
    "convolutions": (convolutions, square, torch.randn(2, 3, 32, 32)),
    "u-net": (UNet, square, torch.randn(2, 1, 32, 32)),
    "1d": (lambda: nn.Conv1d(4, 6, 5, groups=2), square, torch.randn(2, 4, 64)),
    "3d": (lambda: nn.Conv3d(2, 4, 3, stride=2), square, torch.randn(2, 2, 9, 9, 9)),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_kept_is_what_autograd_keeps(name: str) -> None:
    build, compute, given = MODELS[name]
    module = build().train()
    graph = trace(module, compute, given, 2)
    told = 2 * graph.total("saved_bytes") + graph.total("constant_saved_bytes")
    assert told == pytest.approx(kept_bytes(module, compute(module, given), given), rel=0.03)


def kept_bytes(module: nn.Module, result: torch.Tensor, given: Any) -> int:
    """Bytes of the storages that the nodes behind `result` hold, less those of the model and input.

    Read from the nodes themselves: no hook of torch's takes part.
    """
    inputs = given.values() if isinstance(given, dict) else [given]
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *inputs)}
    own |= {t.untyped_storage().data_ptr() for t in module.buffers()}
    nodes, seen, held = [result.grad_fn], set[Any](), dict[int, int]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        for name in dir(node):
            value = getattr(node, name) if name.startswith("_saved_") else None
            for tensor in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    held[storage.data_ptr()] = storage.nbytes()
    return sum(size for memory, size in held.items() if memory not in own)


@pytest.mark.parametrize("name", ["gpt", "convolutions", "u-net"])
def test_a_run_with_values_is_told_alike(name: str) -> None:
    """Without folding and without fake tensors, on tensors with values."""
    build, compute, given = MODELS[name]
    module = build()
    without = trace(module, compute, given, 2)
    double = tracing._twice(given, 2)
    run = tracing._traced(build, compute, [given, double], 2, folds=False)
    assert totals(run) == totals(without)


def totals(graph: ModelGraph) -> dict[str, int]:
    return {size: graph.total(size) for size in SIZES}


def test_blocks_are_watched_once() -> None:
    graph = trace(gpt.model(num_layers=8), gpt.loss, batch(), 2)
    assert [(s.path, s.repeats, s.after) for s in graph.segments] == [
        ("", 1, 0),
        ("blocks.0", 8, 0),
        ("", 1, 8),
    ]
    assert graph.segments[1].paths == graph.chain


def test_a_model_of_a_trillion_parameters_is_traced_without_memory() -> None:
    with torch.device("meta"):
        model = gpt.model(
            num_layers=128, hidden_size=25600, num_heads=160, num_kv_heads=160, vocab_size=51200
        )
    given = {name: t.to("meta") for name, t in batch(2, 2048).items()}
    start = time.process_time()
    graph = trace(model, gpt.loss, given, 2)
    assert time.process_time() - start < 30
    assert graph.num_parameters > 10**12
    # 2 flops a parameter and token outside the embedding, and the square of attention
    products = graph.num_parameters - 51200 * 25600
    squares = 128 * 4 * 2048 * 2048 * 25600
    assert graph.total("flops") == pytest.approx(2048 * 2 * products + squares, rel=1e-5)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_a_long_sequence_is_watched_at_once(kind: type[nn.RNNBase], gates: int) -> None:
    start = time.process_time()
    graph = trace(Words(16, 32, kind), square, torch.zeros(2, 100_000, 16), 2)
    assert time.process_time() - start < 5
    scans = [op for op in graph.segments[0].ops if op.kind == "scan"]
    assert [(op.steps, op.rows, op.columns, op.inner) for op in scans] == 2 * [
        (100_000, 1, gates * 32, 32)
    ]
    weights = gates * 32 * (16 + 32 + 32 + 32)
    assert graph.total("flops") == 2 * (100_000 * weights + 32)
    assert graph.total("parameter_bytes") == graph.parameter_bytes


def test_a_packed_sequence_is_watched_at_once() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.LSTM(4, 8)

        def forward(self, x_BTF: torch.Tensor) -> torch.Tensor:
            lengths = torch.full((len(x_BTF),), x_BTF.shape[1])
            packed = nn.utils.rnn.pack_padded_sequence(x_BTF, lengths, batch_first=True)
            return self.steps(packed)[0].data

    graph = trace(Packed(), square, torch.zeros(2, 6, 4), 2)
    [scan] = [op for op in graph.segments[0].ops if op.kind == "scan"]
    assert (scan.steps, scan.rows, scan.flops) == (6, 1, 2 * 6 * 32 * 8)


def test_experts_are_one_product_of_many() -> None:
    graph = trace(moe.model(num_layers=2, num_experts=4), moe.loss, batch(), 2)
    products = [op for op in graph.segments[1].ops if op.experts and op.kind == "matmul"]
    assert [(op.batch, op.rows, op.inner, op.columns) for op in products] == 3 * [(4, 8.0, 64, 64)]
    assert sum(op.parameter_bytes for op in products) == graph.routed[0].parameter_bytes


def test_graphs_are_traced_by_gather_and_scatter() -> None:
    plates = gnn.data(num_plates=8)["train"][:2]
    double = gnn.collate([*plates, *plates])
    graph = trace(gnn.model(), gnn.loss, gnn.collate(plates), 2, double=double)
    assert {"index_select", "index_add"} & {o.name for s in graph.segments for o in s.ops}
    assert graph.total("parameter_bytes") == graph.parameter_bytes
    assert sum(segment.repeats for segment in graph.segments if segment.path) == 8


class LooksAtValues(nn.Module):
    """A forward that no trace without values can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.map(x)
        return y * 2 if y.sum().item() > 1e9 else y[y.abs() >= 0].view_as(y)


def test_what_looks_at_values_is_run() -> None:
    graph = trace(LooksAtValues(), square, torch.randn(2, 8), 2)
    assert graph.total("flops") == 2 * 8 * 8
    with torch.device("meta"):
        hollow = LooksAtValues()
    with pytest.raises(SpecError, match="_local_scalar_dense"):
        trace(hollow, square, torch.randn(2, 8), 2)


def test_a_loss_that_fails_fails_as_it_does() -> None:
    def broken(model: nn.Module, given: torch.Tensor) -> torch.Tensor:
        raise KeyError("target")

    with pytest.raises(KeyError, match="target"):
        trace(nn.Linear(8, 8), broken, torch.randn(2, 8), 2)


def test_other_ops_for_other_numbers_of_samples_are_refused() -> None:
    def one_by_one(model: nn.Module, given: torch.Tensor) -> torch.Tensor:
        return torch.stack([model(row).sum() for row in given]).sum()

    with pytest.raises(SpecError, match="does not run alike with 2 and 4 samples"):
        trace(nn.Linear(8, 8), one_by_one, torch.randn(2, 8), 2)


def test_a_trace_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    given = torch.randn(4, 4)
    drawn = torch.random.get_rng_state()
    trace(model, square, given, 4)
    after = model.state_dict()
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "forward" not in vars(model[0]) and not model[0]._forward_hooks
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_a_trace_is_kept_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trace(small_gpt(), loss, batch(), 2, folder=tmp_path)
    [file] = tmp_path.iterdir()
    assert load_graph(file) == first
    monkeypatch.setattr(tracing, "_trace", lambda *given: replace(first, name="traced again"))
    assert trace(small_gpt(), loss, batch(), 2, folder=tmp_path) == first
    wider = Gpt(layers=2, hidden=64, heads=4, seq=16, vocab=512, ffn=128)
    assert trace(wider, loss, batch(), 2, folder=tmp_path).name == "traced again"
    assert trace(small_gpt(), loss, batch(4), 4, folder=tmp_path).name == "traced again"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_loss_of_two_numbers_is_traced_by_its_first() -> None:
    def two(model: nn.Module, given: torch.Tensor) -> tuple[torch.Tensor, int]:
        return F.mse_loss(model(given), given), len(given)

    assert trace(nn.Linear(8, 8), two, torch.randn(2, 8), 2).total("backward_flops") == 128
