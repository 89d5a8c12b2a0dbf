"""A gather of equal tensors into one, under the name that the installed torch has for it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def gather_into(each: "Tensor", own: "Tensor", group: Any) -> None:
    """Every rank's `own` into `each`, one after the other along dim 0.

    Source: torch 2.13, torch.distributed.all_gather_single, by which all_gather_into_tensor, the
    only name before, is deprecated.
    """
    import torch.distributed as dist

    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(each, own, group=group)
