"""Where a model may be cut, seen from one call of it; and stages as even as they can be."""

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from armillary.axes.stages.balance import divide
from armillary.models import read
from armillary.spec import ModelGraph


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x_BD: Any, other: Any = None) -> Any:
        return x_BD + self.linear(x_BD if other is None else x_BD + other).tanh()


class Model(nn.Module):
    """A chain of three layers; `between` is what the forward does with them."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.inlet, self.outlet = nn.Linear(4, 4), nn.Linear(4, 4)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.start = nn.Parameter(torch.ones(4))
        self.between = between

    def forward(self, x_BD: Any) -> Any:
        return self.between(self, x_BD)


def graph_of(between: Any) -> ModelGraph:
    return read(Model(between), lambda model: model(torch.ones(2, 4)).sum(), 2)


def plain(model: Any, x_BD: Any) -> Any:
    x_BD = model.inlet(x_BD) + model.start
    for layer in model.layers:
        x_BD = layer(x_BD)
    return model.outlet(x_BD)


def skips(model: Any, x_BD: Any) -> Any:
    first_BD = x_BD = model.inlet(x_BD)
    for layer in model.layers:
        x_BD = layer(x_BD)
    return model.outlet(x_BD + first_BD)


def skips_once(model: Any, x_BD: Any) -> Any:
    first_BD = model.layers[0](model.inlet(x_BD))
    return model.outlet(model.layers[2](model.layers[1](first_BD)) + first_BD)


def hands_on(model: Any, x_BD: Any) -> Any:
    first_BD = x_BD = model.inlet(x_BD)
    for layer in model.layers:
        x_BD = layer(x_BD, first_BD)
    return model.outlet(x_BD + first_BD)


def looks(model: Any, x_BD: Any) -> Any:
    return plain(model, x_BD) if model.layers[0](x_BD).sum() > 0 else x_BD


def draws(model: Any, x_BD: Any) -> Any:
    noise_D = torch.randn(4)
    for layer in model.layers:
        x_BD = layer(x_BD, noise_D)
    return x_BD


def repeats(model: Any, x_BD: Any) -> Any:
    return plain(model, plain(model, x_BD))


def shapes(model: Any, x_BD: Any) -> Any:
    x_BD = model.inlet(x_BD)
    places_D = torch.arange(x_BD.shape[1]).to(x_BD) + torch.zeros_like(x_BD[0])
    for layer in model.layers:
        x_BD = layer(x_BD, places_D)
    return x_BD


@pytest.mark.parametrize(("between", "crossings"), [
    (plain, ((), (0,), (0,))),
    (hands_on, ((), (0, 1), (0, 1))),
    (shapes, ((), (0,), (0,))),
    (skips_once, ((), (0,), ())),
])  # fmt: skip
def test_what_crosses_a_cut(between: Any, crossings: Any) -> None:
    assert graph_of(between).crossings[1:] == crossings[1:]


@pytest.mark.parametrize(("between", "why"), [
    (skips, "takes a tensor made before the blocks"),
    (looks, "looks at the values"),
    (draws, "random numbers"),
    (repeats, "is called 2 times"),
])  # fmt: skip
def test_what_has_no_chain_says_why(between: Any, why: str) -> None:
    graph = graph_of(between)
    assert graph.chain == () and why in graph.uncut


def test_parameters_between_blocks_are_known_by_region() -> None:
    glue = {g.path: g.regions for g in graph_of(plain).glue}
    assert glue["start"] == glue["inlet.weight"] == (0,)
    assert glue["outlet.bias"] == (3,)


def test_an_encoder_and_a_decoder_are_one_chain() -> None:
    """The memory that the encoder leaves crosses every cut in the decoder."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 8)
            self.both = nn.Transformer(8, 2, 2, 2, 8, 0.0, batch_first=True)

        def forward(self, words_BT: torch.Tensor) -> torch.Tensor:
            return self.both(self.embed(words_BT), self.embed(words_BT[:, 1:]))

    words_BT = torch.ones(2, 5, dtype=torch.long)
    graph = read(Translator(), lambda model: model(words_BT).sum(), 2)
    assert [len(crossing) for crossing in graph.crossings] == [0, 0, 2, 2]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=7), st.integers(1, 5), st.data())
def test_stages_are_as_even_as_can_be(costs: list[int], num_parts: int, data: Any) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(costs) - 1))))
    found = divide(costs, cuts, num_parts)
    choices = [(0, *some, len(costs)) for some in combinations(cuts, num_parts - 1)]

    def dearest(bounds: tuple[int, ...]) -> int:
        return max(sum(costs[a:b]) for a, b in pairwise(bounds))

    assert (found is None) == (not choices)
    if found is not None:
        assert found in choices and dearest(found) == min(map(dearest, choices))
