"""The moe recipe: routed experts and latent attention in the gpt's place, on the gpt's data."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils.data import DataLoader

from armillary.models.experts import BalanceBias, Experts, balance_loss
from armillary.recipes import gpt, moe
from armillary.spec import SpecError


@pytest.fixture(scope="module")
def splits() -> dict[str, gpt.Text]:
    return moe.data()


def test_the_file_is_short_enough_to_copy() -> None:
    assert len(Path(moe.__file__).read_text().splitlines()) < 220


def test_the_routed_feed_forward_is_shared_plus_the_chosen_by_their_probability() -> None:
    torch.manual_seed(0)
    layer = moe.RoutedFeedForward(8, Experts(4, 8, 8), 2, None).double()
    x = torch.randn(2, 5, 8).double()
    found, balance = layer(x)
    probability = (x @ layer.router.weight.T).softmax(-1)
    chosen = probability.topk(2).indices
    expected = layer.shared(x)
    for b in range(2):
        for t in range(5):
            for e in chosen[b, t].tolist():
                gate, up, down = (w[e] for w in layer.experts.parameters())
                inner = F.silu(x[b, t] @ gate) * (x[b, t] @ up)
                expected[b, t] = expected[b, t] + probability[b, t, e] * (inner @ down)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(balance, balance_loss(probability, chosen))


def test_latent_attention_is_what_the_paper_writes() -> None:
    """Each head its own keys and values of the latent, one rotated key for all (eq. 9-19)."""
    torch.manual_seed(0)
    layer = moe.LatentAttention(hidden_size=24, num_heads=3).double()
    x = torch.randn(2, 7, 24).double()
    cos, sin = gpt.rotation(x, layer.rotary_size)
    found = layer(x, cos, sin)
    latent = layer.latent_norm(layer.latent(x))
    k_position = gpt.rotate(layer.k_position(x), cos, sin)
    past = torch.ones(7, 7, dtype=torch.bool).tril()
    heads = []
    for n in range(3):
        q = x @ layer.q.weight[12 * n : 12 * n + 12].T
        content = q[..., :8] @ (latent @ layer.k.weight[8 * n : 8 * n + 8].T).mT
        position = gpt.rotate(q[..., 8:], cos, sin) @ k_position.mT
        score = ((content + position) / math.sqrt(8 + 4)).masked_fill(~past, -math.inf)
        heads.append(score.softmax(-1) @ (latent @ layer.v.weight[8 * n : 8 * n + 8].T))
    torch.testing.assert_close(found, torch.cat(heads, -1) @ layer.o.weight.T)


@pytest.mark.parametrize("attention", ["grouped", "latent"])
def test_no_byte_sees_its_future(attention: str) -> None:
    torch.manual_seed(0)
    model = moe.tiny(attention).double().eval()
    tokens = torch.randint(0, 256, (1, 12))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 256
    difference = (model(tokens)[0] - model(changed)[0]).abs().amax(-1)[0]
    assert (difference[:7] < 1e-12).all() and (difference[7:] > 1e-9).all()


def test_the_balance_reaches_the_loss_only_where_it_is_asked_for(
    splits: dict[str, gpt.Text],
) -> None:
    batch = next(iter(DataLoader(splits["train"], 4)))
    for balance, weight in (("loss", 0.01), ("bias", 0.0)):
        torch.manual_seed(0)
        model = moe.model(num_layers=2, hidden_size=32, balance=balance)
        logits, cost = model(batch["tokens"])
        assert cost.shape == (4,) and (cost > 0).all() == (balance == "loss")
        nats = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        torch.testing.assert_close(moe.loss(model, batch), nats + cost.mean())
        assert cost.mean().item() == pytest.approx(weight * 2, rel=0.5)  # two layers, each near 1
        assert sum(isinstance(part, BalanceBias) for part in model.modules()) == (
            2 if balance == "bias" else 0
        )


@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_the_loss_does_not_depend_on_how_the_batch_is_split(
    splits: dict[str, gpt.Text], balance: str
) -> None:
    torch.manual_seed(0)
    model = moe.model(num_layers=2, hidden_size=32, balance=balance).double()
    batch = next(iter(DataLoader(splits["train"], 4)))
    halves = [{name: part[i : i + 2] for name, part in batch.items()} for i in (0, 2)]
    whole = torch.autograd.grad(moe.loss(model, batch), list(model.parameters()))
    parts = [
        torch.autograd.grad(moe.loss(model, half), list(model.parameters())) for half in halves
    ]
    for serial, *split in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(split) / 2, serial, rtol=1e-9, atol=1e-12)


def test_the_graph_can_be_read_with_the_blocks_as_leaves() -> None:
    class Reader(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, path: str) -> bool:
            return isinstance(module, moe.Block) or super().is_leaf_module(module, path)

    model = moe.tiny()
    read = fx.GraphModule(model, Reader().trace(model))
    tokens = torch.randint(0, 256, (2, 10))
    for ours, theirs in zip(model(tokens), read(tokens), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [{"balance": "bias"}, {"balance": "loss", "attention": "latent", "capacity_factor": 1.25}],
)
def test_a_short_training_beats_order_0(
    splits: dict[str, gpt.Text], options: dict[str, object]
) -> None:
    torch.manual_seed(0)
    model = moe.model(num_layers=2, hidden_size=32, num_experts=4, **options)  # type: ignore[arg-type]
    optimizer = moe.optimizer(model.parameters())
    scheduler = moe.scheduler(optimizer, 80)
    for batch in islice(DataLoader(splits["train"], 8, shuffle=True), 80):
        optimizer.zero_grad()
        moe.loss(model, batch).backward()
        optimizer.step()
        scheduler.step()
        for part in model.modules():
            if isinstance(part, BalanceBias):
                part.after_step()
    model.eval()
    with torch.no_grad():
        bits = [moe.predict(model, batch)["bits"] for batch in DataLoader(splits["test"], 64)]
    order0 = gpt.score_counts(0, splits["train"], splits["test"])["bits"].mean()
    assert torch.cat(bits).mean() < order0 - 0.5


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"balance": "both"}, "balance is bias or loss"),
        ({"attention": "linear"}, "attention is grouped or latent"),
        ({"top_k": 9}, "1 <= top_k <= num_experts"),
        ({"num_heads": 3}, "num_kv_heads divides num_heads"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], rule: str) -> None:
    with pytest.raises(SpecError, match=rule):
        moe.model(**options)  # type: ignore[arg-type]
