"""In which precision a step computes, and what it computes twice to save memory."""

import contextlib
import functools
from typing import Any

import torch
from torch import nn

from armillary.axes.compose import computing_again
from armillary.spec import Layout, ModelGraph

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """How the layout's precision enters a step: the batch's dtype, autocast, and loss scaling.

    float32 and float64 are those of the parameters; bfloat16 and float16 keep float32 parameters
    and compute under torch's autocast, float16 with torch's gradient scaler.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float64 if layout.precision == "float64" else torch.float32
        self.autocast_dtype = AUTOCAST.get(layout.precision)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=layout.precision == "float16", init_scale=2.0**14
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)


def recompute_blocks(module: nn.Module, graph: ModelGraph, recompute: str) -> None:
    """Make every repeated block of `module` recompute its activations in the backward pass.

    `full` recomputes all of a block; `selective` keeps the results of matrix products and
    attention, which cost the most to compute again, and recomputes the rest.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174;
    Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
    arXiv 2205.05198, for the selection.
    """
    if recompute == "none":
        return
    from torch.distributed._composable import checkpoint

    for path in (block.path for block in graph.blocks):
        block = module.get_submodule(path)
        checkpoint(block, context_fn=functools.partial(_contexts, block, recompute == "selective"))


def _contexts(block: nn.Module, selective: bool) -> tuple[Any, Any]:
    """The contexts in which a block runs forward, and runs again in the backward pass."""
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    if not selective:
        return contextlib.nullcontext(), _Again(block)
    first, again = create_selective_checkpoint_contexts(_keep)
    return first, _Again(block, again)


class _Again:
    """The context of a block's second run, in which it computes as in the first."""

    def __init__(self, block: nn.Module, inner: Any = None) -> None:
        self.block, self.inner = block, inner
        self.entered: list[contextlib.ExitStack] = []

    def __enter__(self) -> None:
        stack = contextlib.ExitStack()
        stack.enter_context(computing_again(self.block))
        if self.inner is not None:
            stack.enter_context(self.inner)
        self.entered.append(stack)

    def __exit__(self, *error: Any) -> None:
        self.entered.pop().__exit__(*error)


def _keep(context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy

    kept = function.overloadpacket.__name__ in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


KEPT = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "convolution",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
}
"""The operators of aten whose results are kept by selective recomputing."""
