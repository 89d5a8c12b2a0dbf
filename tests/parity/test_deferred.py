"""A model filled tensor by tensor begins with the values of the serial model, on any layout."""

import gc
import importlib
from typing import Any

import pytest
import torch
from torch import nn

from armillary.models.deferred import NotDeferrable, defer
from armillary.spec import Layout
from tests.parity.ranks import Ranks

SEED = 3


class Odd(nn.Module):
    """Every way of making a parameter that a scientist's module has."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.batch_norm = nn.LayerNorm(8), nn.BatchNorm1d(8)
        self.recurrent = nn.LSTM(8, 8, 2)
        self.convolution = nn.Conv2d(4, 4, 3)
        self.scale = nn.Parameter(torch.randn(3, 4) * 0.1)
        self.fixed = nn.Parameter(torch.zeros(3) + torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("position", torch.arange(5.0))
        self.apply(self._begin)
        nn.init.orthogonal_(self.first.weight)
        nn.init.dirac_(self.convolution.weight)
        nn.init.trunc_normal_(self.second.weight, std=0.02)
        with torch.no_grad():
            self.second.weight[:2].normal_(0, 2)
            self.first.bias.copy_(torch.linspace(0, 1, 8))

    def _begin(self, part: nn.Module) -> None:
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def test_the_tape_gives_the_serial_values_bit_by_bit() -> None:
    torch.manual_seed(SEED)
    serial = _tensors(Odd())
    torch.manual_seed(SEED)
    deferred = defer(Odd)
    assert all(tensor.is_meta for tensor in _tensors(deferred.module).values())
    found = {name: value.clone() for name, value in deferred.values(SEED)}
    assert found.keys() == serial.keys()
    assert all(torch.equal(found[name], serial[name]) for name in serial)


def test_whole_tensors_live_one_at_a_time() -> None:
    """What is drawn twice, as by a constructor and then by `apply`, is not held in between."""

    def build() -> nn.Module:
        layers = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(16)))
        layers.apply(lambda m: nn.init.normal_(m.weight) if isinstance(m, nn.Linear) else None)
        return layers

    live = [_count_whole(value.numel()) for _, value in defer(build).values(SEED)]
    assert len(live) == 16 and max(live) <= 2


def _count_whole(num_entries: int) -> int:
    """How many tensors of so many entries have memory now."""
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]
    whole = [t for t in tensors if t.device.type == "cpu" and t.numel() == num_entries]
    return len({t.untyped_storage().data_ptr() for t in whole})


def test_code_that_looks_at_values_is_not_deferred() -> None:
    def build() -> nn.Module:
        layer = nn.Linear(2, 2)
        return layer if float(layer.weight.sum()) > 0 else nn.Linear(2, 2)

    with pytest.raises(NotDeferrable):
        defer(build)


def _begin_on_ranks(recipe: str, words: str) -> dict[str, Any]:
    """The parameters of a deferred start, whole, as this rank sees them."""
    from armillary.step import build as building
    from armillary.step.precision import Precision
    from armillary.step.recipe import load_recipe
    from armillary.step.world import join
    from armillary.verify.prepare import prepare
    from armillary.verify.program import example

    layout = Layout.parse(words)
    loaded = load_recipe(recipe)
    program = prepare(loaded, num_steps=1, batch_size=4).program
    with join(layout, "cpu") as world:
        precision = Precision(layout, world.device)
        module, _ = building._build_in_parts(
            loaded.module.tiny,
            lambda device: example(loaded, program, precision, device),
            world,
            layout,
            dtype=torch.float32,
            seed=SEED,
        )
        whole = {n: getattr(p, "full_tensor", lambda p=p: p)() for n, p in _tensors(module).items()}
        return {name: value.detach().numpy() for name, value in whole.items()}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("gpt", "sharded=2"),
        ("gpt", "tensor=2"),
        ("gpt", "pipeline=2"),
        ("gpt", "sharded=2,tensor=2"),
        ("moe", "expert=2"),
        ("cnn", "data=2,sharded=2"),
    ],
)
def test_a_layout_begins_where_the_serial_model_begins(
    ranks: Ranks, recipe: str, words: str
) -> None:
    torch.manual_seed(SEED)
    tiny = importlib.import_module(f"armillary.recipes.{recipe}").tiny
    serial = {name: t.detach().numpy() for name, t in _tensors(tiny()).items()}
    seen = set()
    for found in ranks.run(Layout.parse(words).num_ranks, _begin_on_ranks, recipe, words):
        assert found.keys() <= serial.keys()
        assert all((found[name] == serial[name]).all() for name in found)
        seen |= found.keys()
    assert seen == serial.keys()
