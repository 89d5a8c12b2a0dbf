"""Attention cut into tiles: queries of some rows with keys of some columns, and their merging.

A tile gives its own softmax and the logarithm of its sum; tiles of the same rows are merged by
those, in any order. A tile's gradients follow from the merged result alone, so no tile is kept.

Source: Milakov & Gimelshein 2018, "Online normalizer calculation for softmax", arXiv 1805.02867,
algorithm 3; Dao 2023, "FlashAttention-2", arXiv 2307.08691, algorithms 1 and 2.
"""

# Shapes: B samples, H heads, K heads of keys and values, G = H / K queries' heads that share one,
# Q rows of queries, C columns of keys, D of a head
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Chunk(NamedTuple):
    """A run of positions of the sequence: the first, and how many."""

    start: int
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Which queries meet which keys: positions of rows and columns, and what is seen of them.

    `bias_BHQC` is added to the scores (a boolean one hides where it is false), `keep_BHQC`
    multiplies the weights, zero where they are dropped.
    """

    rows: Chunk
    columns: Chunk
    is_causal: bool
    scale: float
    bias_BHQC: "Tensor | None" = None
    keep_BHQC: "Tensor | None" = None

    @property
    def is_empty(self) -> bool:
        """Whether no row sees any column."""
        is_later = self.columns.start > self.rows.start + self.rows.length - 1
        return not (self.rows.length and self.columns.length) or (self.is_causal and is_later)

    @property
    def is_whole(self) -> bool:
        """Whether every row sees every column."""
        return not self.is_causal or self.columns.start + self.columns.length <= self.rows.start + 1

    @property
    def is_plain(self) -> bool:
        """Whether a fused form can serve it: seen whole or below its own diagonal, nothing else."""
        is_square = self.is_whole or self.rows == self.columns
        return is_square and self.bias_BHQC is None and self.keep_BHQC is None


def attend_tile(
    q_BHQD: "Tensor", k_BKCD: "Tensor", v_BKCD: "Tensor", tile: Tile
) -> "tuple[Tensor, Tensor]":
    """The attention within `tile` [B, H, Q, D], and the logarithm of its softmax's sum [B, H, Q].

    Both in at least float32; minus infinity and zeros where a row sees nothing.
    """
    if tile.is_plain and (fused := _fused(q_BHQD, v_BKCD)) is not None:
        out_BHQD, log_sum_BHQ = fused.forward(q_BHQD, k_BKCD, v_BKCD, tile)
        return out_BHQD.to(log_sum_BHQ.dtype), log_sum_BHQ
    scores_BHQC = _scores(q_BHQD, k_BKCD, tile)
    log_sum_BHQ = scores_BHQC.logsumexp(-1)
    weights_BHQC = _weights(scores_BHQC, log_sum_BHQ)
    if tile.keep_BHQC is not None:
        weights_BHQC = weights_BHQC * tile.keep_BHQC
    folded = _fold(weights_BHQC, k_BKCD) @ v_BKCD.to(weights_BHQC.dtype)
    return folded.reshape(*q_BHQD.shape[:-1], -1), log_sum_BHQ


def merge(
    out_BHQD: "Tensor", log_sum_BHQ: "Tensor", tile_BHQD: "Tensor", tile_log_sum_BHQ: "Tensor"
) -> None:
    """Add a tile to what other tiles of the same rows gave, in place.

    Begin with zeros and minus infinity.
    """
    total_BHQ = log_sum_BHQ.logaddexp(tile_log_sum_BHQ)
    out_BHQD.mul_(_weights(log_sum_BHQ[..., None], total_BHQ))
    out_BHQD.add_(tile_BHQD * _weights(tile_log_sum_BHQ[..., None], total_BHQ))
    log_sum_BHQ.copy_(total_BHQ)


class TileGradients(NamedTuple):
    """What a tile adds to the gradients of queries, keys, values and bias."""

    q_BHQD: "Tensor"
    k_BKCD: "Tensor"
    v_BKCD: "Tensor"
    bias_BHQC: "Tensor | None"


def tile_gradients(
    grad_BHQD: "Tensor",
    q_BHQD: "Tensor",
    k_BKCD: "Tensor",
    v_BKCD: "Tensor",
    out_BHQD: "Tensor",
    log_sum_BHQ: "Tensor",
    tile: Tile,
) -> TileGradients:
    """What `tile` adds to the gradients, of the merged `out` and `log_sum` of all tiles.

    Source: Dao 2023, arXiv 2307.08691, algorithm 2, lines 11 to 16.
    """
    if tile.is_plain and (fused := _fused(q_BHQD, v_BKCD)) is not None:
        return fused.backward(grad_BHQD, q_BHQD, k_BKCD, v_BKCD, out_BHQD, log_sum_BHQ, tile)
    weights_BHQC = _weights(_scores(q_BHQD, k_BKCD, tile), log_sum_BHQ)
    dtype = weights_BHQC.dtype
    grad_BHQD, q_BHQD, k_BKCD, v_BKCD, out_BHQD = (
        t.to(dtype) for t in (grad_BHQD, q_BHQD, k_BKCD, v_BKCD, out_BHQD)
    )
    grad_weights_BHQC = (_fold(grad_BHQD, k_BKCD) @ v_BKCD.mT).reshape(weights_BHQC.shape)
    kept_BHQC = weights_BHQC
    if tile.keep_BHQC is not None:
        grad_weights_BHQC = grad_weights_BHQC * tile.keep_BHQC
        kept_BHQC = weights_BHQC * tile.keep_BHQC
    mean_BHQ1 = (grad_BHQD * out_BHQD).sum(-1, keepdim=True)
    grad_scores_BHQC = weights_BHQC * (grad_weights_BHQC - mean_BHQ1)
    folded = _fold(grad_scores_BHQC, k_BKCD)
    return TileGradients(
        (folded @ k_BKCD).reshape(q_BHQD.shape) * tile.scale,
        folded.mT @ _fold(q_BHQD, k_BKCD) * tile.scale,
        _fold(kept_BHQC, k_BKCD).mT @ _fold(grad_BHQD, k_BKCD),
        grad_scores_BHQC,
    )


def _fold(values_BHQX: "Tensor", k_BKCD: "Tensor") -> "Tensor":
    """[B, K, G * Q, X]: the rows of the heads that share a key's head, one after another."""
    batch, _, _, size = values_BHQX.shape
    return values_BHQX.reshape(batch, k_BKCD.shape[1], -1, size)


def _scores(q_BHQD: "Tensor", k_BKCD: "Tensor", tile: Tile) -> "Tensor":
    """Scaled scores [B, H, Q, C] in at least float32, minus infinity where a key is not seen."""
    import torch

    dtype = torch.promote_types(q_BHQD.dtype, torch.float32)
    folded = _fold(q_BHQD.to(dtype), k_BKCD) @ k_BKCD.to(dtype).mT
    scores_BHQC = folded.reshape(*q_BHQD.shape[:-1], -1) * tile.scale
    bias_BHQC = tile.bias_BHQC
    if bias_BHQC is not None and bias_BHQC.dtype != torch.bool:
        scores_BHQC = scores_BHQC + bias_BHQC
    elif bias_BHQC is not None:
        scores_BHQC = scores_BHQC.masked_fill(~bias_BHQC, -torch.inf)
    if not tile.is_whole:
        rows_Q, columns_C = (
            torch.arange(c.start, c.start + c.length, device=q_BHQD.device)
            for c in (tile.rows, tile.columns)
        )
        scores_BHQC = scores_BHQC.masked_fill(columns_C > rows_Q[:, None], -torch.inf)
    return scores_BHQC


def _weights(scores_BHQC: "Tensor", log_sum_BHQ: "Tensor") -> "Tensor":
    """exp(scores - log_sum), zero also where a row saw nothing and both are minus infinity."""
    safe_BHQ1 = log_sum_BHQ.masked_fill(log_sum_BHQ.isneginf(), 0.0)[..., None]
    return (scores_BHQC - safe_BHQ1).exp()


@dataclass(frozen=True, slots=True)
class _Fused:
    """torch's fused attention on one tile: `attend` and `differentiate` are its operators."""

    attend: Any
    differentiate: Any
    extras: bool  # what CUDA's operators hand from forward to backward, of no use without dropout

    def forward(
        self, q_BHQD: "Tensor", k_BKCD: "Tensor", v_BKCD: "Tensor", tile: Tile
    ) -> "tuple[Tensor, Tensor]":
        k_BHCD, v_BHCD = (_repeated(t, q_BHQD.shape[1]) for t in (k_BKCD, v_BKCD))
        found = self.attend(q_BHQD, k_BHCD, v_BHCD, 0.0, not tile.is_whole, scale=tile.scale)
        return found[0], found[1]

    def backward(
        self,
        grad_BHQD: "Tensor",
        q_BHQD: "Tensor",
        k_BKCD: "Tensor",
        v_BKCD: "Tensor",
        out_BHQD: "Tensor",
        log_sum_BHQ: "Tensor",
        tile: Tile,
    ) -> TileGradients:
        k_BHCD, v_BHCD = (_repeated(t, q_BHQD.shape[1]) for t in (k_BKCD, v_BKCD))
        dtype = q_BHQD.dtype
        saved = (grad_BHQD.to(dtype), q_BHQD, k_BHCD, v_BHCD, out_BHQD.to(dtype), log_sum_BHQ)
        causal = not tile.is_whole
        if self.extras:
            import torch

            seed = torch.zeros(2, dtype=torch.int64, device=q_BHQD.device)
            sizes = (None, None, q_BHQD.shape[2], k_BHCD.shape[2])
            found = self.differentiate(*saved, *sizes, 0.0, causal, seed, seed, scale=tile.scale)
        else:
            found = self.differentiate(*saved, 0.0, causal, scale=tile.scale)
        shared = k_BKCD.shape[1]
        grad_k, grad_v = (t.unflatten(1, (shared, -1)).sum(2) for t in found[1:3])
        return TileGradients(found[0], grad_k, grad_v, None)


def _fused(q_BHQD: "Tensor", v_BKCD: "Tensor") -> "_Fused | None":
    """The fused attention of the tensors' device and type that also gives the log-sum, if any."""
    import torch

    aten, halves = torch.ops.aten, (torch.float16, torch.bfloat16)
    if q_BHQD.shape[-1] != v_BKCD.shape[-1]:
        return None
    if q_BHQD.device.type == "cpu":
        return _Fused(
            aten._scaled_dot_product_flash_attention_for_cpu,
            aten._scaled_dot_product_flash_attention_for_cpu_backward,
            extras=False,
        )
    size = q_BHQD.shape[-1]
    is_served = q_BHQD.dtype in halves and size <= 256 and size % 8 == 0
    if q_BHQD.device.type == "cuda" and is_served:
        return _Fused(
            aten._scaled_dot_product_flash_attention,
            aten._scaled_dot_product_flash_attention_backward,
            extras=True,
        )
    return None


def _repeated(t_BKCD: "Tensor", num_heads: int) -> "Tensor":
    """Every key's head once for each of the queries' heads that share it."""
    shared = t_BKCD.shape[1]
    return t_BKCD if shared == num_heads else t_BKCD.repeat_interleave(num_heads // shared, dim=1)
