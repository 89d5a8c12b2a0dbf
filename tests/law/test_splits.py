"""Laws of splitting: a cut goes through shapes as its units do, and what is found can be cut."""

from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from armillary.axes import admit
from armillary.axes.regions.pieces import _runs
from armillary.models import read
from armillary.models.carry import Cut, NeedsAll, through_view
from armillary.models.splits import find_splits
from armillary.spec import Layout, ModelGraph, SpecError
from tests.parity.cases import tensor_modules

FACTORS = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)


def groupings(factors: list[int], borders: list[bool]) -> list[int]:
    """A shape: neighbouring factors multiplied where there is no border between them."""
    shape = [factors[0]]
    for factor, border in zip(factors[1:], borders, strict=True):
        shape = [*shape, factor] if border else [*shape[:-1], shape[-1] * factor]
    return shape


@given(st.data())
def test_a_cut_goes_through_a_view_as_its_units_do(data: Any) -> None:
    factors = data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=2, max_size=5))
    borders = st.lists(st.booleans(), min_size=len(factors) - 1, max_size=len(factors) - 1)
    old, new = (groupings(factors, data.draw(borders)) for _ in range(2))
    dim = data.draw(st.integers(0, len(old) - 1))
    assume(old[dim] > 1)
    try:
        found = through_view(Cut(dim, 0, old[dim]), old, new)
    except NeedsAll:
        return
    for degree in (d for d in range(2, found.num_units + 1) if found.num_units % d == 0):
        rank_of = np.indices(old)[dim] * degree // old[dim]
        after = rank_of.reshape(new)
        inner = new[found.dim] // found.outer
        expected = np.indices(new)[found.dim] % inner * degree // inner
        if old[dim] % degree == 0 and inner % degree == 0:
            assert np.array_equal(after, expected)


@given(st.integers(2, 4), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_pieces_reach_the_ranks_that_hold_their_units(degree: int, parts: list[int]) -> None:
    """Every rank gets its part of each piece, in order, and all that is sent is received."""
    sizes = [part * degree for part in parts]
    share, starts = sum(sizes) // degree, np.cumsum([0, *sizes])
    tables = [_runs(sizes, degree, rank) for rank in range(degree)]
    for rank in range(degree):
        rows = [row for runs in tables[rank][1] for run in runs for row in run]
        mine = [
            row
            for start, part in zip(starts, parts, strict=False)
            for row in range(start + rank * part, start + (rank + 1) * part)
        ]
        assert sorted(rows) == mine
    for one, other in product(range(degree), repeat=2):
        sent = [row + one * share for run in tables[one][0][other] for row in run]
        assert sent == [row for run in tables[other][1][one] for row in run]


@given(st.lists(st.sampled_from([1, 4, 6, 8]), min_size=2, max_size=6), st.booleans())
def test_what_is_found_can_be_cut(widths: list[int], normed: bool) -> None:
    """Columns and rows come in pairs, units divide what is cut, and nothing is counted twice."""
    maps: list[nn.Module] = []
    for i, (num_in, num_out) in enumerate(pairwise(widths)):
        maps += [nn.Linear(num_in, num_out), nn.Tanh()]
        if normed and i % 2:
            maps.append(nn.LayerNorm(num_out))
    model = nn.Sequential(*maps)
    splits, unsplit = find_splits(model, lambda m: m(torch.ones(2, widths[0])), 2)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    kinds: dict[str, set[str]] = {}
    for split in splits:
        kinds.setdefault(split.region, set()).add(split.kind)
        if split.kind in ("column", "row", "head"):
            assert shapes[split.path][split.dim] % split.num_units == 0
    assert all({"column", "row"} <= found or "head" in found for found in kinds.values())
    paths = [split.path for split in splits]
    assert len(paths) == len(set(paths))
    linears = {name for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    split_linears = {path.removesuffix(".weight") for path in paths if path.endswith(".weight")}
    assert linears <= split_linears | set(unsplit)


@pytest.mark.parametrize("case", sorted(tensor_modules.CASES))
def test_finding_changes_nothing(case: str) -> None:
    make, example = tensor_modules.CASES[case]
    torch.manual_seed(0)
    model, x = make().double(), example()
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    find_splits(model, lambda m: m(x), len(x))
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def graph_of(model: nn.Module, x: torch.Tensor) -> ModelGraph:
    return read(model.double(), lambda m: m(x), len(x))


def kinds_of(graph: ModelGraph) -> dict[str, str]:
    return {split.path: f"{split.kind} {split.num_units} {split.unit}" for split in graph.splits}


def test_units_are_heads_groups_or_words() -> None:
    writer = tensor_modules.CASES["grouped"][0]()
    found = kinds_of(graph_of(writer, tensor_modules.words()))
    assert found["layers.0.attention.q.weight"] == "column 2 num_key_heads"
    assert found["layers.0.attention.out.weight"] == "row 2 num_key_heads"
    assert found["layers.0.feed_forward.up.weight"] == "column 12 features"
    assert found["embed.weight"] == "vocabulary 24 words"
    assert found["head.weight"] == "head 24 words"
    field = kinds_of(graph_of(tensor_modules.Field(), tensor_modules.numbers(4, 2, 8, 8)))
    assert field["wide.weight"] == "column 4 num_groups" and field["norm.weight"][:6] == "inside"


def test_a_block_hands_on_whole_activations() -> None:
    """A residual stream stays whole between blocks, also where a cut could go through."""
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(2)]
    model = nn.Sequential(nn.Linear(8, 8), *blocks, nn.Linear(8, 2))
    graph = graph_of(model, torch.ones(2, 8, dtype=torch.float64))
    regions = {split.region for split in graph.splits}
    assert regions == {"1.0", "2.0"} and "0" in graph.unsplit


def refused(model: nn.Module, x: torch.Tensor, words: str) -> str:
    with pytest.raises(SpecError) as error:
        admit(Layout.parse(words), graph_of(model, x))
    return str(error.value)


def test_a_degree_that_does_not_divide_is_refused() -> None:
    writer = tensor_modules.CASES["separate"][0]()
    assert refused(writer, tensor_modules.words(), "tensor=3") == (
        "layout.tensor: degree 3 does not divide num_heads 4 of layers.0.attention.q\n"
        "  rule  whole heads stay on one rank (axes/tensor.py)\n"
        "  fix   use one of 1, 2, 4"
    )


def test_what_cannot_be_split_is_refused_by_name() -> None:
    x = torch.ones(2, 3, 5, dtype=torch.float64)
    told = refused(nn.LSTM(5, 8, batch_first=True), x, "tensor=2")
    assert "nothing can be split: the model: its hidden state would be gathered" in told
    told = refused(nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 4)), x, "tensor=2")
    assert "0: what it puts out is normed over its units" in told


def test_cut_norms_need_tokens() -> None:
    x = tensor_modules.numbers(4, 5)
    assert "with no tokens in what" in refused(tensor_modules.Again(), x, NORMS)
    odd = tensor_modules.CASES["odd words"][0]()
    assert "whose tokens come in whole" in refused(odd, tensor_modules.words(), NORMS)
    whole = tensor_modules.CASES["separate"][0]()
    words = tensor_modules.words()
    assert "beside the sequence axis" in refused(whole, words, f"{NORMS},sequence=2")
    assert "does not divide" not in refused(whole, words[:, :5], NORMS)


NORMS = "tensor=2,tensor.norms=cut"


def test_shares_are_of_what_is_cut() -> None:
    """Half of what is split and all of the rest, in bytes."""
    from armillary.axes import discover
    from armillary.spec.layouts import Layouts

    graph = graph_of(tensor_modules.Perceptron(), tensor_modules.numbers(4, 5))
    split = 8 * (12 * 5 + 12 + 3 * 12)
    assert sum(s.parameter_bytes for s in graph.splits if s.kind in ("column", "row")) == split
    share = discover()["tensor"].divides(graph, Layouts.of(Layout.parse("tensor=2"))).parameters
    assert share[0] == pytest.approx(1 - split / 2 / graph.parameter_bytes)
    assert prod(share) < 1
