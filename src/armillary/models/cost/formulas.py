"""What operators of aten compute and move, by name and by the shapes that they take and give."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from armillary.models.cost.event import Product

MATMULS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_grouped_mm"})
CONVOLUTIONS = frozenset({"convolution", "_convolution", "convolution_overrideable"})
GATHERS = frozenset(
    {
        *(
            "embedding",
            "embedding_bag",
            "_embedding_bag",
            "index",
            "index_select",
            "gather",
            "take",
        ),
        *("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "index_add"),
        *("index_add_", "index_copy", "index_copy_", "index_put", "index_put_", "sort", "nonzero"),
        *("_unsafe_index", "_unsafe_index_put", "embedding_dense_backward", "segment_reduce"),
        *("argsort", "masked_select", "repeat_interleave", "roll", "flip", "grid_sampler_2d"),
    }
)
ROWS_ONLY = frozenset(
    {"embedding", "index", "index_select", "gather", "take", "_unsafe_index", "embedding_bag"}
)
"""Those that read of their first tensor only what they give."""
UNREAD = {
    **dict.fromkeys(ROWS_ONLY, 0),
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward"), 0),
    **dict.fromkeys(("nll_loss_backward", "nll_loss2d_backward"), 1),
}
"""Which of the tensors that an op takes it does not read whole: a loss takes one entry a row."""
OF_SHAPE = frozenset(
    {
        *("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"),
        *("rand_like", "randn_like", "randint_like"),
    }
)
"""Those that take a tensor for its shape alone."""
KERNELS = {"native_layer_norm_backward": 2, "convolution_backward": 2, "native_batch_norm": 2}
"""Launches of an op that is more than one kernel: gradients of inputs and of parameters apart."""
FFTS = frozenset({"_fft_r2c", "_fft_c2c", "_fft_c2r"})
FREE = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})


def kind_of(name: str) -> str:
    """What bounds an op, in the words of `spec.Op`."""
    if name in MATMULS:
        return "matmul"
    if name in CONVOLUTIONS:
        return "convolution"
    if name in FFTS:
        return "fft"
    return "gather" if name in GATHERS else "stream"


def product_of(name: str, args: Sequence[Any], out: Any) -> Product | None:
    """The product that an op is, if it is one."""
    if name in CONVOLUTIONS:
        transposed, groups = bool(args[6]), int(args[8])
        return _convolution(args[0].shape, args[1].shape, out.shape, transposed, groups)
    if name not in MATMULS:
        return None
    left, right = args[1:3] if name in ("addmm", "baddbmm", "addmv") else args[:2]
    if left.ndim == 1:
        return Product(1, 1, 1, left.shape[0])
    if right.ndim == 1:
        return Product(1, left.shape[0], 1, left.shape[1])
    if name == "_grouped_mm":
        batch = right.shape[0] if right.ndim == 3 else 1
        return Product(batch, left.shape[-2] // batch, right.shape[-1], left.shape[-1])
    batch = left.shape[0] if left.ndim == 3 else 1
    return Product(batch, left.shape[-2], right.shape[-1], left.shape[-1])


def _convolution(
    x: Sequence[int], weight: Sequence[int], out: Sequence[int], transposed: bool, groups: int
) -> Product:
    """As an implicit product: positions x taps; of a transposed one, of what it takes."""
    taps = math.prod(weight[2:])
    if transposed:
        rows = x[0] * math.prod(x[2:])
        return Product(groups, rows, weight[1] * taps, weight[0] // groups)
    rows = out[0] * math.prod(out[2:])
    return Product(groups, rows, weight[0] // groups, weight[1] * taps)


def flops_of(name: str, args: Sequence[Any], out: Any) -> int:
    """Multiplications and additions of products, convolutions and transforms; 0 of all others."""
    product = product_of(name, args, out)
    if product is not None:
        return product.flops
    if name in FFTS:
        # Source: Cooley and Tukey 1965: 5 N log2 N for a complex transform of N entries
        whole = max(args[0].numel(), out.numel())
        extent = math.prod(max(args[0].shape[dim], out.shape[dim]) for dim in args[1])
        share = 1.0 if name == "_fft_c2c" else 0.5
        return int(5 * whole * math.log2(max(extent, 2)) * share)
    if name == "convolution_backward":
        _, x, weight, *_, mask = args
        gradient = args[0].shape
        one = _convolution(x.shape, weight.shape, gradient, bool(args[7]), int(args[9])).flops
        return one * sum(map(bool, mask[:2]))
    return 0


def touched_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the entries of a tensor, each once: what is expanded is read once."""
    entries = math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride
    )
    return entries * tensor.element_size() if tensor.numel() else 0


def tensors_of(values: Any) -> list[torch.Tensor]:
    """The tensors among arguments or results."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
