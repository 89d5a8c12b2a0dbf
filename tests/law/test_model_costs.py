"""Laws of what a model costs: linear in the samples, conserved by folding, growing with sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from armillary.models import families, trace
from armillary.spec import ModelGraph

SIZES = (
    *("flops", "read_bytes", "written_bytes", "saved_bytes", "unscaled_saved_bytes"),
    *("backward_flops", "backward_read_bytes", "backward_written_bytes", "parameter_bytes"),
    *("constant_bytes", "constant_saved_bytes", "num_kernels"),
)
LIGHT = settings(max_examples=8, deadline=None)


def square(model: nn.Module, taken: torch.Tensor) -> torch.Tensor:
    return model(taken).square().mean()


def totals(graph: ModelGraph) -> dict[str, int]:
    return {size: graph.total(size) for size in SIZES}


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A small network of maps or convolutions, and the shape of one sample."""
    width = draw(st.integers(2, 5))
    if draw(st.booleans()):
        parts = [nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU()]
        return nn.Sequential(*parts, nn.Linear(2 * width, 3)), (draw(st.integers(1, 4)), width)
    kernel = draw(st.integers(1, 3))
    parts = [nn.Conv2d(2, width, kernel), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.ConvTranspose2d(width, 2, 2, stride=2)), (2, 9, 8)


@LIGHT
@given(network=networks(), one=st.integers(1, 3), other=st.integers(4, 6))
def test_a_sample_costs_the_same_in_any_batch(
    network: tuple[nn.Module, tuple[int, ...]], one: int, other: int
) -> None:
    module, shape = network
    found = [totals(trace(module, square, torch.zeros(n, *shape), n)) for n in (one, other)]
    assert found[0] == found[1]


@LIGHT
@given(depth=st.integers(2, 5), width=st.integers(2, 6))
def test_folding_conserves(depth: int, width: int) -> None:
    """Blocks in a list, which are folded, cost what they cost written one after the other."""

    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.Tanh())

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i in range(depth):
                setattr(self, f"b{i}", block())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for i in range(depth):
                x = getattr(self, f"b{i}")(x)
            return x

    x = torch.zeros(2, width)
    folded = trace(nn.Sequential(*(block() for _ in range(depth))), square, x, 2)
    assert max(segment.repeats for segment in folded.segments) >= depth - 1
    assert totals(folded) == totals(trace(Unrolled(), square, x, 2))


@LIGHT
@given(
    layers=st.integers(1, 12),
    heads=st.integers(1, 8),
    head_dim=st.sampled_from([2, 8, 64]),
    seq=st.integers(1, 512),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_a_family_grows_as_it_should(
    layers: int, heads: int, head_dim: int, seq: int, dtype: str
) -> None:
    def graph(depth: int) -> ModelGraph:
        sizes = f"hidden={heads * head_dim},heads={heads},seq={seq},vocab=64,dtype={dtype}"
        return families.parse(f"gpt:layers={depth},{sizes}")

    one, two, three = (graph(layers + i) for i in range(3))
    for size in SIZES:
        assert two.total(size) - one.total(size) == three.total(size) - two.total(size) >= 0
    hidden = heads * head_dim
    per_block = 24 * seq * hidden**2 + 4 * seq**2 * hidden
    assert two.total("flops") - one.total("flops") == per_block
    assert one.total("saved_bytes") >= one.total("unscaled_saved_bytes")


@LIGHT
@given(chosen=st.integers(1, 8), experts=st.sampled_from([8, 16, 64]))
def test_experts_cost_what_is_chosen_and_weigh_all(chosen: int, experts: int) -> None:
    words = f"moe:layers=2,hidden=32,heads=4,seq=64,vocab=64,chosen={chosen},expert_ffn=16"
    graph = families.parse(f"{words},experts={experts}")
    work = [o for o in graph.segments[1].ops if o.experts and o.kind == "matmul"]
    assert sum(op.flops for op in work) == 3 * 2 * 64 * chosen * 32 * 16
    assert sum(op.parameter_bytes for op in work) == experts * 3 * 32 * 16 * 4
    assert all(op.batch * op.rows == pytest.approx(64 * chosen) for op in work)
