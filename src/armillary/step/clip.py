"""The norm of all gradients of a model, whatever part of it a rank holds, and clipping by it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from armillary.axes import discover
from armillary.axes.stages.driven import COPIES

if TYPE_CHECKING:
    from torch.distributed import DeviceMesh


def clip_gradients(
    parameters: Sequence[nn.Parameter], clip_norm: float, mesh: "DeviceMesh | None"
) -> float:
    """The 2-norm of the gradients of the whole model, which are scaled down to `clip_norm`.

    Every shard of every parameter counts once, however many ranks hold it.
    """
    if mesh is None:
        return float(nn.utils.clip_grad_norm_(parameters, clip_norm))
    from torch.distributed.tensor import DTensor

    total = torch.zeros((), dtype=torch.float64)
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        copies = _count_copies(parameter, mesh) * getattr(parameter, COPIES, 1)
        total += (torch.linalg.vector_norm(local).double() ** 2 / copies).cpu()
    total = total.to(mesh.device_type)
    dist.all_reduce(total)
    norm = float(total.sqrt())
    if not norm < clip_norm:  # also where it is not finite
        factor = clip_norm / (norm + 1e-6)
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
    return norm


def _count_copies(parameter: nn.Parameter, mesh: "DeviceMesh") -> int:
    """How many ranks of `mesh` hold the same shard of `parameter` as this one."""
    from torch.distributed.tensor import DTensor

    shards = 1
    if isinstance(parameter, DTensor):
        inner = parameter.device_mesh
        for dim, placement in enumerate(parameter.placements):
            # a shard of a shard is one as well, though torch's is_shard() denies it
            shards *= 1 if placement.is_replicate() else inner.size(dim)
    axes = discover()
    for dim, name in enumerate(mesh.mesh_dim_names or ()):
        shards *= mesh.size(dim) if axes[name].splits_module else 1
    return mesh.size() // shards
