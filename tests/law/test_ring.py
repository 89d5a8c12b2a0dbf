"""Attention in tiles is attention, whatever the tiles and the order in which they are merged."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armillary.axes.attention.ring import contiguous, is_zigzag_possible, zigzag
from armillary.axes.attention.tiles import Chunk, Tile, attend_tile, merge, tile_gradients

EXACT = {"rtol": 0.0, "atol": 1e-12}
SCALE = 0.4


def drawn(length: int, num_key_heads: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(2, heads, length, 8, dtype=torch.float64, generator=generator)

    return draw(4), draw(num_key_heads), draw(num_key_heads), draw(4)


def whole(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, bias: Any, causal: bool
) -> tuple[torch.Tensor, ...]:
    """torch's own attention and its gradients."""
    inputs = [t.clone().requires_grad_() for t in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(
        *inputs, attn_mask=bias, is_causal=causal, scale=SCALE, enable_gqa=True
    )
    return out.detach(), *torch.autograd.grad(out, inputs, grad)


def chunks(length: int, cuts: set[int]) -> list[Chunk]:
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < length), length]
    return [Chunk(low, high - low) for low, high in pairwise(edges)]


def span(chunk: Chunk) -> slice:
    return slice(chunk.start, chunk.start + chunk.length)


def tiles(
    rows: list[Chunk], columns: list[Chunk], order: list[int], bias: Any, causal: bool
) -> list[Tile]:
    found = [
        Tile(
            rows=r,
            columns=c,
            is_causal=causal,
            scale=SCALE,
            bias_BHQC=None if bias is None else bias[..., span(r), span(c)],
        )
        for r in rows
        for c in columns
    ]
    return [found[i] for i in sorted(range(len(found)), key=lambda i: order[i % len(order)])]


def in_tiles(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, wanted: list[Tile]
) -> tuple[torch.Tensor, ...]:
    out = torch.zeros_like(q)
    log_sum = q.new_full(q.shape[:3], -torch.inf)
    gradients = [torch.zeros_like(t) for t in (q, k, v)]
    seen = [tile for tile in wanted if not tile.is_empty]
    for tile in seen:
        r, c = span(tile.rows), span(tile.columns)
        part = attend_tile(q[:, :, r], k[:, :, c], v[:, :, c], tile)
        merge(out[:, :, r], log_sum[:, :, r], *part)
    for tile in seen:
        r, c = span(tile.rows), span(tile.columns)
        added = tile_gradients(
            grad[:, :, r], q[:, :, r], k[:, :, c], v[:, :, c], out[:, :, r], log_sum[:, :, r], tile
        )
        gradients[0][:, :, r] += added.q_BHQD
        gradients[1][:, :, c] += added.k_BKCD
        gradients[2][:, :, c] += added.v_BKCD
    return out, *gradients


lengths = st.integers(1, 12)
cut_sets = st.sets(st.integers(1, 11), max_size=4)
orders = st.lists(st.integers(0, 99), min_size=1, max_size=25)


@given(
    lengths, cut_sets, cut_sets, orders, st.sampled_from([4, 2, 1]), st.booleans(), st.booleans()
)
def test_tiles_merged_in_any_order_are_the_whole(
    length: int,
    row_cuts: set[int],
    column_cuts: set[int],
    order: list[int],
    num_key_heads: int,
    causal: bool,
    masked: bool,
) -> None:
    q, k, v, grad = drawn(length, num_key_heads, seed=length)
    bias = torch.rand(2, 1, length, length) > 0.4 if masked and not causal else None
    if bias is not None:
        bias[..., 0] = True  # torch's own gradient of a row that sees nothing is not a number
    wanted = tiles(chunks(length, row_cuts), chunks(length, column_cuts), order, bias, causal)
    for ours, theirs in zip(
        in_tiles(q, k, v, grad, wanted), whole(q, k, v, grad, bias, causal), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_a_wrong_causal_offset_is_caught() -> None:
    """The same tiles with columns one place late are not the whole."""
    q, k, v, grad = drawn(8, 2, seed=0)
    parts = chunks(8, {4})
    right = tiles(parts, parts, [0], None, True)
    late = [
        Tile(
            rows=t.rows,
            columns=Chunk(t.columns.start + 1, t.columns.length),
            is_causal=True,
            scale=SCALE,
        )
        for t in right
    ]
    theirs = whole(q, k, v, grad, None, True)[0]
    out, log_sum = torch.zeros_like(q), q.new_full(q.shape[:3], -torch.inf)
    for tile, told in zip(right, late, strict=True):
        r, c = span(tile.rows), span(tile.columns)
        if not told.is_empty:
            part = attend_tile(q[:, :, r], k[:, :, c], v[:, :, c], told)
            merge(out[:, :, r], log_sum[:, :, r], *part)
    assert (out - theirs).abs().max() > 0.01


def test_a_row_that_sees_nothing_is_zero() -> None:
    q, k, v, grad = drawn(4, 4, seed=1)
    hidden = torch.ones(4, 4, dtype=torch.bool)
    hidden[2] = False
    wanted = tiles(chunks(4, set()), chunks(4, {2}), [0], hidden, False)
    out, *gradients = in_tiles(q, k, v, grad, wanted)
    assert out[:, :, 2].abs().max() == 0.0
    assert all(torch.isfinite(t).all() for t in (out, *gradients))


def test_the_fused_form_is_the_plain_one() -> None:
    """A tile that torch's own fused attention takes, and one with a mask that hides nothing."""
    q, k, v, grad = drawn(8, 2, seed=2)
    parts = chunks(8, {4})
    shows = torch.ones(8, 8, dtype=torch.bool)
    plain = tiles(parts, parts, [0], shows, True)
    fused = tiles(parts, parts, [0], None, True)
    assert all(tile.is_plain or tile.is_empty for tile in fused)
    assert not any(tile.is_plain for tile in plain)
    for ours, theirs in zip(
        in_tiles(q, k, v, grad, fused), in_tiles(q, k, v, grad, plain), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_what_dropout_keeps_enters_the_gradients() -> None:
    q, k, v, grad = drawn(6, 4, seed=3)
    keep = (torch.rand(2, 4, 6, 6, dtype=torch.float64) > 0.3) / 0.7
    tile = Tile(
        rows=Chunk(0, 6), columns=Chunk(0, 6), is_causal=True, scale=SCALE, keep_BHQC=keep.double()
    )
    inputs = [t.clone().requires_grad_() for t in (q, k, v)]
    scores = (inputs[0] @ inputs[1].mT * SCALE).masked_fill(
        torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf
    )
    theirs = (scores.softmax(-1) * keep) @ inputs[2]
    wanted = [theirs.detach(), *torch.autograd.grad(theirs, inputs, grad)]
    for ours, other in zip(in_tiles(q, k, v, grad, [tile]), wanted, strict=True):
        torch.testing.assert_close(ours, other, **EXACT)


@given(st.integers(1, 40), st.integers(1, 8))
def test_every_position_has_one_holder(length: int, degree: int) -> None:
    """Contiguous shares are those of torch.chunk, padded with ranks that hold none."""
    held = contiguous(length, degree)
    assert [p for (c,) in held for p in range(c.start, c.start + c.length)] == list(range(length))
    sizes = [len(part) for part in torch.arange(length).chunk(degree)]
    assert [c.length for (c,) in held] == sizes + [0] * (degree - len(sizes))


@given(st.integers(1, 4), st.integers(1, 8))
def test_the_zigzag_shares_the_work_of_a_causal_mask(size: int, degree: int) -> None:
    """Every position has one holder, and every rank meets as many pairs as any other."""
    length = 2 * degree * size
    assert is_zigzag_possible(length, length, degree)
    held = [[p for c in parts for p in range(c.start, c.start + c.length)] for parts in
            zigzag(length, degree)]  # fmt: skip
    assert sorted(p for positions in held for p in positions) == list(range(length))
    assert len({sum(p + 1 for p in positions) for positions in held}) == 1


@pytest.mark.parametrize("causal", [True, False])
def test_tiles_above_the_diagonal_are_left_out(causal: bool) -> None:
    tile = Tile(rows=Chunk(0, 4), columns=Chunk(4, 4), is_causal=causal, scale=SCALE)
    assert tile.is_empty == causal
