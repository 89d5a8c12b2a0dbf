"""Attention as numbers: fused or written out, grouped, rotated, or from a latent vector.

`Heads` says the sizes; the functions add a layer's ops, parameters and cuts to a `Part`.
"""

from dataclasses import dataclass
from typing import Any

from armillary.models.layers.part import STATISTIC_BYTES, Part
from armillary.spec import Attention, Op

FLASH_BACKWARD = 2.5
"""Products of the backward pass for each of the forward: scores are computed once more.

Source: Dao et al. 2022, "FlashAttention", arXiv 2205.14135, appendix B.4: five products for two.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """The sizes of an attention: heads, those of keys, the width of a head and of its values."""

    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    value_dim: int
    causal: bool
    bias: bool = False
    fused: bool = True
    dropout: float = 0.0


def packed(part: Part, path: str, sizes: Heads) -> None:
    """Attention with one projection, in which each group's queries, keys and values lie together.

    Source: the layout of Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053.
    """
    n, g, d = sizes.heads, sizes.key_heads, sizes.head_dim
    width, is_grouped = (n + 2 * g) * d, n > g
    part.linear(f"{path}.qkv", sizes.hidden, width, bias=sizes.bias, cut="columns")
    whole, queries = part.size(width), part.size(n * d)
    part.stream(path, "split", read=0, written=0, back=(whole, whole), kernels=(0, 1), cut="all")
    if is_grouped:  # queries of several groups do not lie in one run
        part.stream(path, "copy", read=queries, written=queries, kernels=(1, 0), cut="all")
    if sizes.fused:
        kept = whole + (queries if is_grouped else 0)
        _attend(part, path, sizes, kept=kept)
    else:
        _write_out(part, path, sizes)
    part.linear(
        f"{path}.out", n * d, sizes.hidden, bias=sizes.bias, keeps=not sizes.fused, cut="inner"
    )
    unit = "features" if not sizes.fused else "num_heads" if g == n else "num_key_heads"
    part.pair([f"{path}.qkv"], f"{path}.out", sizes.hidden, g, unit, sizes.bias)


def rotated(part: Part, path: str, sizes: Heads) -> None:
    """Attention with projections of their own and positions by rotation (arXiv 2104.09864)."""
    n, g, d, hidden = sizes.heads, sizes.key_heads, sizes.head_dim, sizes.hidden
    for place, (name, heads) in enumerate((("q", n), ("k", g), ("v", g))):
        part.linear(
            f"{path}.{name}",
            hidden,
            heads * d,
            bias=sizes.bias,
            keeps=not place,
            forks=place > 0,
            cut="columns",
        )
    _rotate(part, path, n * d, cut="all")
    _rotate(part, path, g * d, cut="all")
    _attend(part, path, sizes, kept=part.size((n + 2 * g) * d))
    part.linear(f"{path}.o", n * d, hidden, bias=sizes.bias, keeps=False, cut="inner")
    unit = "num_heads" if g == n else "num_key_heads"
    begins = [f"{path}.{name}" for name in "qkv"]
    part.pair(begins, f"{path}.o", hidden, g, unit, sizes.bias)


def latent(part: Part, path: str, sizes: Heads, latent_dim: int, rotary: int, query: int) -> None:
    """Attention whose keys and values come from one latent vector of each token.

    `rotary` entries of a head, beside its `head_dim`, are rotated, for all keys the same; queries
    come from a latent vector of their own where `query` is above 0.

    Source: DeepSeek-V2, arXiv 2405.04434, eq. 9-19.
    """
    n, d, r, hidden = sizes.heads, sizes.head_dim, rotary, sizes.hidden
    if query:
        part.linear(f"{path}.q_latent", hidden, query)
        part.norm(f"{path}.q_latent_norm", query, "rms")
    part.linear(f"{path}.q", query or hidden, n * (d + r))
    part.linear(f"{path}.latent", hidden, latent_dim, keeps=False, forks=True)
    part.norm(f"{path}.latent_norm", latent_dim, "rms")
    part.linear(f"{path}.k", latent_dim, n * d)
    part.linear(f"{path}.v", latent_dim, n * sizes.value_dim, keeps=False, forks=True)
    part.linear(f"{path}.k_position", hidden, r, keeps=False, forks=True)
    _rotate(part, path, r)
    _rotate(part, path, n * r)
    whole = part.size(n * (d + r))
    part.stream(path, "cat", read=whole, written=whole, back=(0, 0), kernels=(1, 0))
    read = part.size(n * d + r)
    # the keys' shared part is added up over the heads, and the parts of queries put together
    part.stream(path, "cat", read=read, written=whole, back=(2 * whole, whole), kernels=(1, 2))
    _attend(part, path, sizes, kept=2 * whole + part.size(n * sizes.value_dim), width=d + r)
    part.linear(f"{path}.o", n * sizes.value_dim, hidden, keeps=False)
    taken = "what it puts out is attended to otherwise than by heads"
    part.unsplit |= {f"{path}.{name}": taken for name in ("q", "k", "v", "o")}


def _rotate(part: Part, path: str, features: int, cut: str = "") -> None:
    """Two products, a half turned round, and their sum: five kernels each way."""
    size = part.size(features)
    read, written = 11 * size // 2, 9 * size // 2
    part.stream(
        path,
        "rotate",
        read=read,
        written=written,
        back=(read, written),
        kernels=(5, 5),
        cut=cut,
        workspace_bytes=2 * size,
    )


def _attend(part: Part, path: str, sizes: Heads, *, kept: int, width: int = 0) -> None:
    """Fused attention: it keeps queries, keys and values (`kept` bytes), its result and sums."""
    n, g, tokens = sizes.heads, sizes.key_heads, part.tokens
    width = width or sizes.head_dim
    query, key = part.size(n * width), part.size(g * width)
    value, out = part.size(g * sizes.value_dim), part.size(n * sizes.value_dim)
    sums = tokens * n * STATISTIC_BYTES
    flops = 2 * tokens * tokens * n * (width + sizes.value_dim)
    part.ops.append(
        Op(
            path=path,
            kind="attention",
            name="scaled_dot_product_attention",
            rows=tokens,
            columns=tokens,
            inner=width,
            batch=n,
            batch_is_samples=True,
            flops=flops,
            read_bytes=query + key + value,
            written_bytes=out + sums,
            saved_bytes=kept + out + sums,
            unscaled_saved_bytes=sums,
            workspace_bytes=query + key + value + out,
            backward_flops=int(FLASH_BACKWARD * flops),
            backward_read_bytes=2 * out + sums + query + key + value,
            backward_written_bytes=query + key + value,
            num_backward_kernels=2,
            causal=sizes.causal,
            heads=n,
            key_heads=g,
            length=tokens,
            key_length=tokens,
            head_dim=width,
            value_dim=sizes.value_dim,
            cut="batch" if width == sizes.head_dim else "",
            tokens=True,
        )
    )
    part.attentions.append(
        Attention(
            path=path,
            num_heads=n,
            num_key_heads=g,
            length=tokens,
            key_length=tokens,
            is_causal=sizes.causal,
            query_bytes=query,
            key_bytes=key,
            value_bytes=value,
        )
    )


def _write_out(part: Part, path: str, sizes: Heads) -> None:
    """Scores, mask, softmax, dropout and the mean of values, each its own kernel."""
    assert sizes.key_heads == sizes.heads, "grouped attention is fused"
    n, d, tokens = sizes.heads, sizes.head_dim, part.tokens
    each, scores = part.size(n * d), tokens * tokens * n * part.element_bytes
    part.stream(path, "copy", read=3 * each, written=3 * each, kernels=(3, 0), cut="all")
    _bmm(part, path, sizes, (tokens, d), kept=2 * each, sizes_read=2 * each, written=scores)
    passed: dict[str, Any] = {
        "read": scores,
        "written": scores,
        "back": (scores, scores),
        "cut": "all",
    }
    part.stream(path, "mul", **passed)
    if sizes.causal:
        part.stream(path, "masked_fill", **passed)
        part.last(constant_saved_bytes=tokens * tokens)
    part.stream(path, "_softmax", **passed | {"back": (2 * scores, scores)}, saved=scores)
    part.dropout(path, scores, sizes.dropout, cut="all")
    kept = each + (scores if sizes.dropout else 0)
    _bmm(part, path, sizes, (d, tokens), kept=kept, sizes_read=scores + each, written=each)
    part.stream(path, "copy", read=each, written=each, kernels=(1, 0), cut="all")


def _bmm(
    part: Part,
    path: str,
    sizes: Heads,
    shape: tuple[int, int],
    *,
    kept: int,
    sizes_read: int,
    written: int,
) -> None:
    columns, inner = shape
    flops = 2 * part.tokens * columns * inner * sizes.heads
    part.ops.append(
        Op(
            path=path,
            kind="matmul",
            name="bmm",
            rows=part.tokens,
            columns=columns,
            inner=inner,
            batch=sizes.heads,
            batch_is_samples=True,
            flops=flops,
            read_bytes=sizes_read,
            written_bytes=written,
            saved_bytes=kept,
            workspace_bytes=sizes_read + written,
            backward_flops=2 * flops,
            backward_read_bytes=2 * written + sizes_read,
            backward_written_bytes=sizes_read,
            num_backward_kernels=2,
            cut="batch",
            tokens=True,
        )
    )
