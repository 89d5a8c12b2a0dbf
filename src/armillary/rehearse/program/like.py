"""What it takes to make another tensor like one, whole or a part of a distributed one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True)
class Like:
    """Shape, strides and dtype of a tensor; `laid` says how the whole lies on a mesh, if it does.

    `laid` is the mesh, the placements, and the shape and strides of the whole.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    laid: tuple[Any, Any, torch.Size, tuple[int, ...]] | None = None

    @classmethod
    def of(cls, tensor: Any) -> "Like":
        """What `tensor` is like."""
        local = plain(tensor)
        laid = None
        if isinstance(tensor, DTensor):
            laid = tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride()
        return cls(local.shape, local.stride(), local.dtype, tensor.requires_grad, laid)

    def make(self) -> Any:
        """Another such tensor."""
        local = torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        if self.laid is None:
            return local
        mesh, placements, shape, stride = self.laid
        return DTensor.from_local(
            local, mesh, placements, run_check=False, shape=shape, stride=stride
        )


def key_of(tensors: Sequence[Any]) -> Any:
    """Equal for tensors that are alike one by one."""
    likes = [Like.of(tensor) for tensor in tensors]
    return [(x.shape, x.dtype, x.requires_grad, x.laid and (x.laid[1], x.laid[2])) for x in likes]


def plain(tensor: Any) -> Any:
    """The tensor on this rank that holds what `tensor` stands for."""
    while (inner := getattr(tensor, "_local_tensor", getattr(tensor, "elem", None))) is not None:
        tensor = inner
    return tensor
