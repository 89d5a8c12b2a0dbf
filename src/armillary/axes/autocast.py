"""What is sent of a tensor that a product takes: as narrow as autocast has the product take it."""

from typing import Any


def narrowed(tensor: Any) -> Any:
    """`tensor` in the dtype in which autocast has a product take it; as it is without autocast.

    Cast before it is sent, it and its gradient travel in 16 bits, and the product takes the same
    numbers.
    """
    import torch

    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def widened(tensor: Any) -> Any:
    """`tensor` in at least 32 bits, as autocast has a loss or a sum take it."""
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
