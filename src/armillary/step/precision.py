"""In which precision a step computes, and what it computes twice to save memory."""

import contextlib
import functools
from typing import Any

import torch
from torch import nn

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
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    options: dict[str, Any] = {}
    if recompute == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep)
    for block in graph.blocks:
        checkpoint(module.get_submodule(block.path), **options)


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
