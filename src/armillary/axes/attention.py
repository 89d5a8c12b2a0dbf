"""Attention on DTensors: every rank attends with the heads that it holds."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.overrides import TorchFunctionMode


def attend_in_parts(part: "nn.Module") -> None:
    """Have `scaled_dot_product_attention` in `part` take DTensors, whose heads may be cut.

    torch has no rule of sharding for the CPU's attention, so its calls are taken before dispatch.
    """
    from armillary.axes.compose import compute_in

    compute_in(part, _mode)


def _mode() -> "TorchFunctionMode":
    """A mode in which attention over DTensors is computed on their local parts."""
    import torch
    from torch.distributed.tensor import DTensor
    from torch.overrides import TorchFunctionMode

    attend = torch.nn.functional.scaled_dot_product_attention

    class AttentionInParts(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function is not attend or not isinstance(args[0] if args else None, DTensor):
                return function(*args, **(kwargs or {}))
            return _by_heads(*args, **(kwargs or {}))

    def _by_heads(query: Any, key: Any, value: Any, attn_mask: Any = None, **others: Any) -> Any:
        mesh, placements = query.device_mesh, query.placements
        key, value = (tensor.redistribute(mesh, placements) for tensor in (key, value))
        if isinstance(attn_mask, DTensor):
            attn_mask = attn_mask.full_tensor()
        locals_ = (tensor.to_local() for tensor in (query, key, value))
        return DTensor.from_local(
            attend(*locals_, attn_mask=attn_mask, **others), mesh, placements, run_check=False
        )

    return AttentionInParts()
