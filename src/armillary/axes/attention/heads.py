"""Attention by heads: all-to-all gives every rank the whole sequence of some of the heads.

Source: Jacobs et al. 2023, "DeepSpeed Ulysses: System Optimizations for Enabling Training of
Extreme Long Sequence Transformer Models", arXiv 2309.14509, section 3.1.
"""

# Shapes: B samples, H heads, K heads of keys and values, Q and C positions that the rank holds,
# T all of them, D of a head
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def heads_attention(
    q_BHQD: "Tensor",
    k_BKCD: "Tensor",
    v_BKCD: "Tensor",
    group: "ProcessGroup",
    *,
    mask: "Tensor | None" = None,
    **others: Any,
) -> "Tensor":
    """The attention [B, H, Q, D] of this rank's queries to the keys of all ranks of `group`.

    The number of ranks divides the heads; heads of keys and values that it does not divide are
    sent more than once. `mask` is of all rows and columns, and of all this rank's heads or of one.
    """
    import torch

    degree, num_heads, num_key_heads = group.size(), q_BHQD.shape[1], k_BKCD.shape[1]
    copies = int(sent_key_heads(num_key_heads, degree)) // num_key_heads
    keys = [t if copies == 1 else t.repeat_interleave(copies, dim=1) for t in (k_BKCD, v_BKCD)]
    turn = _function().apply
    q, k, v = (turn(t, group, True) for t in (q_BHQD, *keys))
    if mask is not None and mask.ndim > 2 and mask.shape[-3] > 1:
        mask = mask.chunk(degree, dim=-3)[group.rank()]
    if num_heads != num_key_heads * copies:
        others = others | {"enable_gqa": True}
    attend = torch.nn.functional.scaled_dot_product_attention
    attended: Tensor = turn(attend(q, k, v, attn_mask=mask, **others), group, False)
    return attended


def sent_key_heads(num_key_heads: Any, degree: Any) -> Any:
    """How many heads of keys are sent, copies included, so that `degree` divides them.

    Both may be arrays of one shape, that of the result.
    """
    return np.lcm(num_key_heads, degree)


@cache
def _function() -> Any:
    """The differentiable all-to-all; made when first used, as torch is not imported before."""
    import torch

    class Turned(torch.autograd.Function):
        """From all heads of some positions to some heads of all positions, or back."""

        @staticmethod
        def forward(ctx: Any, local: Any, group: Any, to_heads: bool) -> Any:
            ctx.group, ctx.to_heads = group, to_heads
            return _turn(local, group, to_heads)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Any) -> Any:
            return _turn(gradient, ctx.group, not ctx.to_heads), None, None

    return Turned


def _turn(local: "Tensor", group: "ProcessGroup", to_heads: bool) -> "Tensor":
    import torch
    import torch.distributed as dist

    cut, joined = (1, 2) if to_heads else (2, 1)
    pieces = torch.stack(local.chunk(group.size(), dim=cut))
    received = torch.empty_like(pieces)
    dist.all_to_all_single(received, pieces, group=group)
    return torch.cat(received.unbind(), dim=joined)
