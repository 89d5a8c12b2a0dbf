"""torch's own multi-head attention, cut by heads: its packed projection is exchanged."""

# Shapes: T rows, B samples, E features; N heads, D of a head; S columns
import math
from collections.abc import Callable
from typing import Any

from armillary.axes.regions.maps import apply_dropout, apply_linear
from armillary.axes.regions.pieces import exchange


def _attend(cut: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """`multi_head_attention_forward` where its projection is cut; otherwise torch's own."""
    import inspect

    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if not cut.is_cut(given["in_proj_weight"], 0):
        return function(*args, **kwargs)
    return _attend_by_heads(cut, given)


def _projected(cut: Any, given: Any) -> Any:
    """Queries, keys and values [T, B, E], cut by heads; one product where all come of one tensor.

    Only such are split, but what hooks a module may take hands the attention copies of it.
    """
    import torch

    linear, weight, bias = (
        torch.nn.functional.linear,
        given["in_proj_weight"],
        given["in_proj_bias"],
    )
    taken = [given[name] for name in ("query", "key", "value")]
    sizes = [given["embed_dim_to_check"]] * 3

    def pieces(x_TBE: Any) -> Any:
        x_TBE = cut.on_mesh(x_TBE, weight)
        return exchange(cut, apply_linear(cut, linear, x_TBE, weight, bias), -1, sizes)

    if taken[0] is taken[1] is taken[2]:
        return pieces(taken[0])
    return [pieces(x_TBE)[i] for i, x_TBE in enumerate(taken)]


def _attend_by_heads(cut: Any, given: Any) -> Any:
    import torch
    from torch.distributed.tensor import Replicate

    functional = torch.nn.functional
    x_TBE = given["query"]
    size, num_heads = given["embed_dim_to_check"], given["num_heads"]
    q_BNTD, k_BNSD, v_BNSD = (
        piece.unflatten(-1, (num_heads, size // num_heads)).permute(1, 2, 0, 3)
        for piece in _projected(cut, given)
    )
    mask = _joint_mask(given, x_TBE)
    dropout = given["dropout_p"] if given["training"] else 0.0
    weights = None
    if given["need_weights"]:
        scores = q_BNTD @ k_BNSD.transpose(-1, -2) / math.sqrt(size // num_heads)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        weights = apply_dropout(cut, functional.dropout, weights, dropout)
        out_BNTD = weights @ v_BNSD
        weights = cut.laid(
            weights.mean(1) if given["average_attn_weights"] else weights, Replicate()
        )
    else:
        out_BNTD = functional.scaled_dot_product_attention(
            q_BNTD, k_BNSD, v_BNSD, attn_mask=mask, dropout_p=dropout
        )
    out_TBE = out_BNTD.permute(2, 0, 1, 3).flatten(2)
    lies = cut.placement(x_TBE)
    token_dim = lies.dim if lies is not None and lies.is_shard() else 0
    weights_out = given["out_proj_weight"], given["out_proj_bias"]
    out = apply_linear(cut, functional.linear, out_TBE, *weights_out, token_dim=token_dim)
    return out, weights


def _joint_mask(given: Any, x_TBE: Any) -> Any:
    """Both masks as one that is added to the scores [B, N, T, S], or None."""
    import torch

    def added(mask: Any) -> Any:
        if mask.dtype != torch.bool:
            return mask
        return torch.zeros(mask.shape, dtype=x_TBE.dtype, device=mask.device).masked_fill(
            mask, -math.inf
        )

    mask, padding = given["attn_mask"], given["key_padding_mask"]
    if mask is not None:
        mask = added(mask)
        mask = mask if mask.ndim == 2 else mask.unflatten(0, (x_TBE.shape[1], -1))
    if padding is not None:
        padding = added(padding)[:, None, None]
        mask = padding if mask is None else mask + padding
    return mask


HANDLERS: dict[str, Callable[..., Any]] = {"multi_head_attention_forward": _attend}
