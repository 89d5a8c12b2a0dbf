"""The gpt recipe: real prose, rivals that count, a decoder that is what the papers write."""

from __future__ import annotations

import math
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.utils.data import DataLoader

from armillary.audit import compare
from armillary.recipes import gpt
from armillary.recipes.gpt.counts import contexts, ngram
from armillary.spec import SpecError


@pytest.fixture(scope="module")
def splits() -> dict[str, gpt.Text]:
    return gpt.data()


def test_the_file_is_short_enough_to_copy() -> None:
    assert len(Path(gpt.__file__).read_text().splitlines()) < 200


def test_the_text_is_pythons_manual_and_a_sample_knows_what_comes_next(
    splits: dict[str, gpt.Text],
) -> None:
    sizes = {name: len(split.text_L) for name, split in splits.items()}
    total = sum(sizes.values())
    assert total > 300_000 and sizes["train"] / total == pytest.approx(0.8, abs=0.001)
    assert "statement" in splits["train"].text_L.tobytes().decode(errors="replace")
    one, following = splits["test"][3], splits["test"][4]
    assert one["tokens"].shape == one["targets"].shape == (128,)
    assert torch.equal(one["tokens"][1:], one["targets"][:-1])
    assert one["targets"][-1] == following["tokens"][0]
    assert following["position"] - one["position"] == 128
    assert len(gpt.data(sequence_length=64)["test"]) - 2 * len(splits["test"]) in (0, 1)


def test_no_paragraph_stands_in_two_splits(splits: dict[str, gpt.Text]) -> None:
    inner = {
        name: set(split.text_L.tobytes().split(b"\n\n")[1:-1]) for name, split in splits.items()
    }
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not inner[one] & inner[other]


def test_the_fingerprint_names_the_content(splits: dict[str, gpt.Text]) -> None:
    assert len({split.fingerprint for split in splits.values()}) == 3
    assert gpt.data()["test"].fingerprint == splits["test"].fingerprint
    assert gpt.data(64)["test"].fingerprint != splits["test"].fingerprint


def test_counting_is_witten_and_bells() -> None:
    """By hand: `ab` and `ac` after `a`, so 2 of 4 parts go to order 0, that has its own two."""
    past, text = (np.frombuffer(part, dtype=np.uint8) for part in (b"abac", b"ab"))
    assert contexts(text, 1).tolist() == [0, ord("a")]
    order0 = {b: (count + 3 / 256) / (4 + 3) for b, count in ((ord("a"), 2), (ord("b"), 1))}
    share = ngram(1, past, text)
    assert share.sum(1) == pytest.approx(1)
    assert share[1, ord("b")] == pytest.approx((1 + 2 * order0[ord("b")]) / (2 + 2))
    assert share[1, ord("a")] == pytest.approx((0 + 2 * order0[ord("a")]) / (2 + 2))


def test_a_longer_memory_counts_better(splits: dict[str, gpt.Text]) -> None:
    rivals = {name: gpt.metrics(rival) for name, rival in gpt.rivals(splits).items()}
    bits = [rivals[f"order {n}"]["bits_per_byte"] for n in (0, 2, 4)]
    assert 4 < bits[0] < 6 and 2.2 < bits[1] < 3.2 and 1.8 < bits[2] < bits[1] - 0.2


def test_attention_is_what_the_papers_write() -> None:
    """RoPE as a turn of complex pairs, grouped heads repeated, a softmax over the past."""
    torch.manual_seed(0)
    attention = gpt.Attention(hidden_size=24, num_heads=6, num_kv_heads=2).double()
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    found = attention(x, *gpt.rotation(x, attention.head_size))

    def turned(part: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(part[..., :2], part[..., 2:])
        angle = torch.tensor([[t * 10_000.0 ** (-2 * i / 4) for i in range(2)] for t in range(9)])
        pairs = pairs * torch.polar(torch.ones_like(angle), angle).to(torch.complex128)
        return torch.cat([pairs.real, pairs.imag], -1)

    expected = torch.zeros(2, 9, 24, dtype=torch.float64)
    for head in range(6):
        mine, group = slice(4 * head, 4 * head + 4), slice(4 * (head // 3), 4 * (head // 3) + 4)
        q = turned(x @ attention.q.weight[mine].T)
        k = turned(x @ attention.k.weight[group].T)
        score = (q @ k.transpose(1, 2)) / math.sqrt(4)
        past = torch.ones(9, 9, dtype=torch.bool).tril()
        weight = score.masked_fill(~past, -math.inf).softmax(-1)
        expected[..., mine] = weight @ (x @ attention.v.weight[group].T)
    expected = expected @ attention.o.weight.T
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_rotation_makes_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 8).double(), torch.randn(1, 1, 1, 8).double()
    cos, sin = gpt.rotation(torch.zeros(1, 20, 8).double(), 8)
    scores = (
        gpt.rotate(q.expand(-1, -1, 20, -1), cos, sin)
        @ gpt.rotate(k.expand(-1, -1, 20, -1), cos, sin).mT
    )
    for distance in (0, 3, 11):
        along = scores[0, 0].diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-5)


def test_no_byte_sees_its_future() -> None:
    model = gpt.tiny().double()
    tokens = torch.randint(0, 256, (1, 12))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 256
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert (difference[:7] == 0).all() and (difference[7:] > 0).all()


def test_tied_weights_are_one_parameter() -> None:
    tied, free = gpt.model(tied=True), gpt.model()
    assert tied.embedding.weight is tied.head.weight
    assert free.embedding.weight is not free.head.weight
    num_free, num_tied = (sum(p.numel() for p in m.parameters()) for m in (free, tied))
    assert num_free - num_tied == 256 * 64
    gpt.loss(tied, next(iter(DataLoader(gpt.data()["train"], 2)))).backward()
    assert tied.embedding.weight.grad is tied.head.weight.grad


def test_the_graph_can_be_read_with_the_blocks_as_leaves() -> None:
    class Reader(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, path: str) -> bool:
            return isinstance(module, gpt.Block) or super().is_leaf_module(module, path)

    model = gpt.tiny()
    graph = Reader().trace(model)
    blocks = [node for node in graph.nodes if str(node.target).startswith("blocks.")]
    assert [node.target for node in blocks] == [f"blocks.{i}" for i in range(4)]
    assert all(b.args[0] is a for a, b in pairwise(blocks))
    tokens = torch.randint(0, 256, (2, 10))
    read = fx.GraphModule(model, graph)
    assert torch.equal(read(tokens), model(tokens))
    longer = torch.randint(0, 256, (3, 17))
    assert torch.equal(read(longer), model(longer))


def test_a_short_training_beats_order_0_and_is_compared(splits: dict[str, gpt.Text]) -> None:
    torch.manual_seed(0)
    model = gpt.model(num_layers=2, hidden_size=32)
    optimizer = gpt.optimizer(model.parameters())
    scheduler = gpt.scheduler(optimizer, 120)
    for batch in islice(DataLoader(splits["train"], 8, shuffle=True), 120):
        optimizer.zero_grad()
        gpt.loss(model, batch).backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        batches = [gpt.predict(model, batch) for batch in DataLoader(splits["test"], 64)]
    predictions = {key: torch.cat([b[key] for b in batches]).numpy() for key in batches[0]}
    rivals = gpt.rivals(splits)
    assert all(rival.keys() == predictions.keys() for rival in rivals.values())
    assert all(
        np.array_equal(rival["position"], predictions["position"]) for rival in rivals.values()
    )
    found = compare(predictions, rivals, gpt.metrics, gpt.groups, num_resamples=200)
    assert 30 < found["num_groups"] < 60
    gap = found["metrics"]["bits_per_byte"]["rivals"]["order 0"]
    assert gap["excludes_zero"] and gap["difference"] < -0.8


def test_the_score_of_a_sample_is_the_loss_in_bits(splits: dict[str, gpt.Text]) -> None:
    model = gpt.tiny()
    batch = next(iter(DataLoader(splits["test"], 4)))
    scores = gpt.predict(model, batch)
    torch.testing.assert_close(scores["bits"].mean() * math.log(2), gpt.loss(model, batch))
    hits = (model(batch["tokens"]).argmax(-1) == batch["targets"]).float()
    torch.testing.assert_close(scores["accuracy"], hits.mean(1))


@pytest.mark.parametrize("sizes", [(64, 4, 3), (60, 4, 2), (63, 3, 3)])
def test_heads_that_do_not_fit_are_refused(sizes: tuple[int, int, int]) -> None:
    hidden_size, num_heads, num_kv_heads = sizes
    with pytest.raises(SpecError, match="num_kv_heads divides num_heads"):
        gpt.model(hidden_size=hidden_size, num_heads=num_heads, num_kv_heads=num_kv_heads)
