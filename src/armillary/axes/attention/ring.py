"""Ring attention: blocks of keys and values travel round the ranks that hold parts of a sequence.

Every rank attends from its own queries to each block as it passes, and merges the tiles; in the
backward pass the gradients of keys and values travel along with them and end at home. Under a
causal mask the first ranks would wait for the last, so rank r of S computes for the parts r and
2 S - 1 - r of the sequence cut in 2 S ("zigzag"), exchanged on entry and exit.

Source: Liu et al. 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context",
arXiv 2310.01889, algorithm 1; Brandon et al. 2023, "Striped Attention", arXiv 2311.09431, for the
imbalance under a causal mask.
"""

# Shapes: B samples, H heads, K heads of keys and values, Q rows of queries and C columns of keys
# that the rank holds, T all columns, D of a head
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from armillary.axes.attention.tiles import Chunk, Tile, attend_tile, merge, tile_gradients

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

Chunks = tuple[Chunk, ...]
KEYS_TAG, GRADIENTS_TAG = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring:
    """One call of attention over a group of ranks: who holds which rows and columns.

    `rows` and `columns` list for every rank of the group the runs of positions that it holds, in
    order; where `is_zigzag` they are those of the ranks while they compute.
    """

    group: "ProcessGroup"
    rows: tuple[Chunks, ...]
    columns: tuple[Chunks, ...]
    is_causal: bool
    is_zigzag: bool
    scale: float
    dropout: float = 0.0
    seed: int = 0

    @property
    def rank(self) -> int:
        """This process among the ranks of the ring."""
        return self.group.rank()

    @property
    def degree(self) -> int:
        """The number of ranks of the ring."""
        return self.group.size()


def ring_attention(
    q_BHQD: "Tensor",
    k_BKCD: "Tensor",
    v_BKCD: "Tensor",
    group: "ProcessGroup",
    *,
    num_rows: int,
    num_columns: int,
    mask: "Tensor | None" = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    is_balanced: bool = True,
) -> "Tensor":
    """The attention [B, H, Q, D] of this rank's queries to the keys of all ranks of `group`.

    The sequences of `num_rows` queries and `num_columns` keys are cut over the ranks as
    `torch.chunk` cuts. `mask` is of this rank's rows and all columns, additive or boolean, and
    broadcasts over samples and heads. `is_balanced` shares the work of a causal mask evenly where
    twice the number of ranks divides both lengths and there is no mask besides.
    """
    import torch

    degree = group.size()
    is_zigzag = (
        is_causal
        and is_balanced
        and mask is None
        and is_zigzag_possible(num_rows, num_columns, degree)
    )
    ring = Ring(
        group=group,
        rows=zigzag(num_rows, degree) if is_zigzag else contiguous(num_rows, degree),
        columns=zigzag(num_columns, degree) if is_zigzag else contiguous(num_columns, degree),
        is_causal=is_causal,
        is_zigzag=is_zigzag,
        scale=q_BHQD.shape[-1] ** -0.5 if scale is None else scale,
        dropout=dropout,
        seed=int(torch.randint(2**62, ())) if dropout else 0,
    )
    attended: Tensor = _function().apply(q_BHQD, k_BKCD, v_BKCD, mask, ring)
    return attended


def contiguous(length: int, degree: int) -> tuple[Chunks, ...]:
    """The positions that each of `degree` ranks holds, cut as `torch.chunk` cuts."""
    size = -(-length // degree)
    starts = [min(rank * size, length) for rank in range(degree + 1)]
    return tuple((Chunk(starts[r], starts[r + 1] - starts[r]),) for r in range(degree))


def zigzag(length: int, degree: int) -> tuple[Chunks, ...]:
    """The positions that each rank computes for: an early part and the late one opposite."""
    size = length // (2 * degree)
    parts = [Chunk(part * size, size) for part in range(2 * degree)]
    return tuple((parts[rank], parts[2 * degree - 1 - rank]) for rank in range(degree))


def is_zigzag_possible(num_rows: int, num_columns: int, degree: int) -> bool:
    """Whether twice the number of ranks divides both lengths."""
    return num_rows % (2 * degree) == 0 == num_columns % (2 * degree)


def exchange(tensors: "Sequence[Tensor]", group: "ProcessGroup", is_entry: bool) -> "list[Tensor]":
    """`tensors` [B, *, T, D] of contiguous positions with those of the zigzag, or back.

    One message: each rank sends and receives two halves of each tensor.
    """
    import torch
    import torch.distributed as dist

    degree, rank = group.size(), group.rank()
    contiguous_parts = [(2 * r, 2 * r + 1) for r in range(degree)]
    zigzag_parts = [(r, 2 * degree - 1 - r) for r in range(degree)]
    held, wanted = contiguous_parts, zigzag_parts
    if not is_entry:
        held, wanted = wanted, held
    owner = {part: r for r in range(degree) for part in wanted[r]}
    sender = {part: r for r in range(degree) for part in held[r]}
    # by the rank they go to or come from, and in the order of the sequence
    leaving = sorted(held[rank], key=lambda part: (owner[part], part))
    coming = sorted(wanted[rank], key=lambda part: (sender[part], part))
    halves = [t.chunk(2, dim=2) for t in tensors]
    rows = [
        torch.cat([pair[held[rank].index(part)].reshape(-1) for pair in halves]) for part in leaving
    ]
    sent = torch.stack(rows)
    received = torch.empty_like(sent)
    dist.all_to_all_single(
        received,
        sent,
        [sum(sender[part] == r for part in coming) for r in range(degree)],
        [sum(owner[part] == r for part in leaving) for r in range(degree)],
        group=group,
    )
    ordered = [received[coming.index(part)] for part in wanted[rank]]
    pieces = [row.split([pair[0].numel() for pair in halves]) for row in ordered]
    return [
        torch.cat([piece[i].view(pair[0].shape) for piece in pieces], dim=2)
        for i, pair in enumerate(halves)
    ]


class Passing:
    """Tensors on their way to the next rank, and those of the previous one on theirs to here."""

    def __init__(self, sent: "Tensor", arriving: "Tensor", group: "ProcessGroup", tag: int) -> None:
        import torch.distributed as dist

        rank, degree = group.rank(), group.size()
        self.sent, self.arriving = sent, arriving
        self.works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, sent, group=group, tag=tag, group_peer=(rank + 1) % degree),
                dist.P2POp(
                    dist.irecv, arriving, group=group, tag=tag, group_peer=(rank - 1) % degree
                ),
            ]
        )

    def wait(self) -> "Tensor":
        """What the previous rank sent."""
        for work in self.works:
            work.wait()
        return self.arriving


class Block:
    """Keys and values of one rank in one piece of memory, so that they travel as one message."""

    def __init__(self, k_BKCD: "Tensor", v_BKCD: "Tensor", columns: Sequence[Chunks]) -> None:
        self.k_shape, self.v_shape = list(k_BKCD.shape), list(v_BKCD.shape)
        self.lengths = [sum(chunk.length for chunk in chunks) for chunks in columns]

    def pack(self, k_BKCD: "Tensor", v_BKCD: "Tensor") -> "Tensor":
        """Keys and values in one flat piece of memory."""
        import torch

        return torch.cat([k_BKCD.reshape(-1), v_BKCD.reshape(-1)])

    def empty(self, like: "Tensor", rank: int) -> "Tensor":
        """Memory for the block of `rank`, of the type of `like`."""
        k_shape, v_shape = self._shapes(rank)
        return like.new_empty(k_shape.numel() + v_shape.numel())

    def unpack(self, flat: "Tensor", rank: int) -> "tuple[Tensor, Tensor]":
        """Views of the keys and the values of `rank`."""
        k_shape, v_shape = self._shapes(rank)
        k_flat, v_flat = flat.split([k_shape.numel(), v_shape.numel()])
        return k_flat.view(k_shape), v_flat.view(v_shape)

    def _shapes(self, rank: int) -> Any:
        import torch

        return [
            torch.Size([*shape[:2], self.lengths[rank], shape[3]])
            for shape in (self.k_shape, self.v_shape)
        ]


def _tiles(ring: Ring, source: int, mask: "Tensor | None", like: "Tensor") -> Any:
    """The tiles in which this rank's queries meet the keys of `source`: rows, columns, tile."""
    row = 0
    for rows in ring.rows[ring.rank]:
        column = 0
        for columns in ring.columns[source]:
            here = slice(row, row + rows.length), slice(column, column + columns.length)
            tile = Tile(rows=rows, columns=columns, is_causal=ring.is_causal, scale=ring.scale)
            if not tile.is_empty:
                bias = None if mask is None else mask[_place(mask, here[0], columns)]
                keep = _keep(ring, tile, like) if ring.dropout else None
                yield *here, replace(tile, bias_BHQC=bias, keep_BHQC=keep)
            column += columns.length
        row += rows.length


def _place(mask: "Tensor", rows: slice, columns: Chunk) -> Any:
    """Where a tile lies in the mask of this rank's rows; dims of size 1 are for all."""
    span = slice(columns.start, columns.start + columns.length)
    whole = slice(None)
    row_place = whole if mask.shape[-2] == 1 else rows
    return ..., row_place, whole if mask.shape[-1] == 1 else span


def _keep(ring: Ring, tile: Tile, like: "Tensor") -> "Tensor":
    """What dropout keeps of a tile, the same in both passes and other ones in every tile."""
    import torch

    generator = torch.Generator(like.device)
    place = (tile.rows.start << 31) + tile.columns.start  # positions are far below 2^31
    generator.manual_seed((ring.seed ^ (place * 0x9E3779B97F4A7C15)) % 2**63)
    shape = (*like.shape[:2], tile.rows.length, tile.columns.length)
    dtype = torch.promote_types(like.dtype, torch.float32)
    drawn = torch.rand(shape, generator=generator, dtype=dtype, device=like.device)
    return (drawn >= ring.dropout).to(dtype) / (1.0 - ring.dropout)


@cache
def _function() -> Any:
    """The differentiable function; made when first used, as torch is not imported before."""
    import torch

    class RingAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q_BHQD: Any, k_BKCD: Any, v_BKCD: Any, mask: Any, ring: Ring) -> Any:
            if ring.is_zigzag:
                q_BHQD, k_BKCD, v_BKCD = exchange([q_BHQD, k_BKCD, v_BKCD], ring.group, True)
            out_BHQD, log_sum_BHQ = _forward(q_BHQD, k_BKCD, v_BKCD, mask, ring)
            out_BHQD = out_BHQD.to(q_BHQD.dtype)
            ctx.save_for_backward(q_BHQD, k_BKCD, v_BKCD, mask, out_BHQD, log_sum_BHQ)
            ctx.ring = ring
            return exchange([out_BHQD], ring.group, False)[0] if ring.is_zigzag else out_BHQD

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad_BHQD: Any) -> Any:
            ring, saved = ctx.ring, ctx.saved_tensors  # once, or recomputing fails
            if ring.is_zigzag:
                grad_BHQD = exchange([grad_BHQD], ring.group, True)[0]
            found = _backward(grad_BHQD, saved, ring, ctx.needs_input_grad[3])
            gradients = [
                gradient.to(like.dtype) for gradient, like in zip(found[:3], saved[:3], strict=True)
            ]
            if ring.is_zigzag:
                gradients = exchange(gradients, ring.group, False)
            return (*gradients, found[3], None)

    return RingAttention


def _forward(
    q_BHQD: "Tensor", k_BKCD: "Tensor", v_BKCD: "Tensor", mask: "Tensor | None", ring: Ring
) -> "tuple[Tensor, Tensor]":
    """The merged attention and log-sum of this rank's rows, in at least float32."""
    import torch

    dtype = torch.promote_types(q_BHQD.dtype, torch.float32)
    out_BHQD = q_BHQD.new_zeros((*q_BHQD.shape[:3], v_BKCD.shape[3]), dtype=dtype)
    log_sum_BHQ = q_BHQD.new_full(q_BHQD.shape[:3], -torch.inf, dtype=dtype)
    block = Block(k_BKCD, v_BKCD, ring.columns)
    held = block.pack(k_BKCD, v_BKCD)
    for step in range(ring.degree):
        source = (ring.rank - step) % ring.degree
        passing = _pass_on(held, block, ring, step, source)
        k, v = block.unpack(held, source)
        for rows, columns, tile in _tiles(ring, source, mask, q_BHQD):
            part = attend_tile(q_BHQD[:, :, rows], k[:, :, columns], v[:, :, columns], tile)
            merge(out_BHQD[:, :, rows], log_sum_BHQ[:, :, rows], *part)
        held = passing.wait() if passing else held
    return out_BHQD, log_sum_BHQ


def _pass_on(held: "Tensor", block: Block, ring: Ring, step: int, source: int) -> "Passing | None":
    """The keys and values of `source` sent on, and those of the rank before it awaited."""
    if step == ring.degree - 1:
        return None
    arriving = block.empty(held, (source - 1) % ring.degree)
    return Passing(held, arriving, ring.group, KEYS_TAG)


def _backward(grad_BHQD: "Tensor", saved: Any, ring: Ring, wants_mask: bool) -> Any:
    """The gradients of queries, keys, values and mask that belong to this rank."""
    import torch

    q_BHQD, k_BKCD, v_BKCD, mask, out_BHQD, log_sum_BHQ = saved
    grad_q_BHQD = torch.zeros_like(q_BHQD, dtype=log_sum_BHQ.dtype)
    grad_mask = torch.zeros_like(mask) if mask is not None and wants_mask else None
    block = Block(k_BKCD, v_BKCD, ring.columns)
    held = block.pack(k_BKCD, v_BKCD)
    travelling: Passing | None = None
    for step in range(ring.degree):
        source = (ring.rank - step) % ring.degree
        passing = _pass_on(held, block, ring, step, source)
        k, v = block.unpack(held, source)
        added = held.new_zeros(held.shape, dtype=log_sum_BHQ.dtype)
        grad_k, grad_v = block.unpack(added, source)
        for rows, columns, tile in _tiles(ring, source, mask, q_BHQD):
            found = tile_gradients(
                grad_BHQD[:, :, rows],
                q_BHQD[:, :, rows],
                k[:, :, columns],
                v[:, :, columns],
                out_BHQD[:, :, rows],
                log_sum_BHQ[:, :, rows],
                tile,
            )
            grad_q_BHQD[:, :, rows] += found.q_BHQD
            grad_k[:, :, columns] += found.k_BKCD
            grad_v[:, :, columns] += found.v_BKCD
            if grad_mask is not None and found.bias_BHQC is not None:
                place = grad_mask[_place(grad_mask, rows, tile.columns)]
                place += found.bias_BHQC.sum_to_size(place.shape)
        if travelling is not None:
            added += travelling.wait()
        arriving = block.empty(added, (source - 1) % ring.degree)
        travelling = Passing(added, arriving, ring.group, GRADIENTS_TAG)
        held = passing.wait() if passing else held
    assert travelling is not None
    home = block.unpack(travelling.wait(), ring.rank)
    return grad_q_BHQD, *home, grad_mask
