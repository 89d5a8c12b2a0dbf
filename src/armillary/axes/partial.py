"""Gradients that are still sums in parts, one part a rank, added up before the optimiser's step."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

BUCKET_BYTES = 25 * 2**20
"""Memory of one message; Source: `bucket_cap_mb` of torch's DistributedDataParallel."""


def add_up_gradients(parameters: "Iterable[nn.Parameter]") -> None:
    """Make every gradient of `parameters` lie as its parameter does.

    Where ranks computed for different positions, a gradient of DTensor is a partial sum. Those of
    one group of ranks are added in few messages, once a step whatever the micro batches.
    """
    from torch.distributed.tensor import DTensor

    parted = [p for p in parameters if isinstance(p.grad, DTensor) and isinstance(p, DTensor)]
    streams: dict[Any, list[Any]] = {}
    for parameter in parted:
        gradient: Any = parameter.grad
        for dim, (found, wanted) in enumerate(
            zip(gradient.placements, parameter.placements, strict=True)
        ):
            if found.is_partial("sum") and wanted.is_replicate():
                key = gradient.device_mesh.get_group(dim), gradient.dtype
                streams.setdefault(key, []).append((parameter, dim))
    for (group, _), members in streams.items():
        _add_up(members, group)
    for parameter in parted:
        gradient = parameter.grad
        if gradient.placements != parameter.placements:
            parameter.grad = gradient.redistribute(parameter.device_mesh, parameter.placements)


def _add_up(members: "list[tuple[Any, int]]", group: "ProcessGroup") -> None:
    """The gradients of parameters, each partial along a dim of its mesh, replaced by their sums."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Replicate

    locals_ = [parameter.grad.to_local() for parameter, _ in members]
    for bucket in _buckets(locals_):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat, group=group)
        pieces = flat.split([tensor.numel() for tensor in bucket])
        for tensor, piece in zip(bucket, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))
    for (parameter, dim), local in zip(members, locals_, strict=True):
        gradient = parameter.grad
        placements = list(gradient.placements)
        placements[dim] = Replicate()
        parameter.grad = DTensor.from_local(
            local,
            gradient.device_mesh,
            placements,
            run_check=False,
            shape=gradient.shape,
            stride=gradient.stride(),
        )


def _buckets(tensors: "Iterable[Tensor]") -> "list[list[Tensor]]":
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if size > room:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(tensor)
        room -= size
    return buckets
