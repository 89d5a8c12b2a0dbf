"""The ranks that split the batch, for what is counted over all samples of a micro batch.

Batch norm, the capacity of experts and the load of a router all depend on every sample of a micro
batch, so they have to know who holds the others, and whether this rank holds any that count.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.axes.gather import gather_into
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import DeviceMesh, ProcessGroup

_state = {"counts": True}


def note_samples(num_samples: int) -> None:
    """Say that the micro batch computed from now on has `num_samples` samples that count.

    A rank that finds no sample left computes one that counts 0, so that its collectives match; it
    must not enter a mean. It is a note and no context: what is recomputed in the backward pass, in
    a thread of its own, has to find it too.
    """
    _state["counts"] = num_samples > 0


def counts_here() -> bool:
    """Whether the samples of the micro batch at hand count."""
    return _state["counts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRanks:
    """The ranks that split the batch with this one: it holds part `index` of `count`, in order."""

    group: "ProcessGroup"
    index: int
    count: int

    def total(self, tensor: "Tensor") -> "Tensor":
        """`tensor` summed over the ranks; same shape, a plain tensor, without gradient."""
        import torch.distributed as dist

        summed = whole(tensor).detach().clone()
        dist.all_reduce(summed, group=self.group)
        return summed

    def before(self, tensor: "Tensor") -> "tuple[Tensor, Tensor]":
        """`tensor` summed over the ranks that hold earlier samples, and over all."""
        import torch

        each = tensor.new_empty(self.count, *tensor.shape)
        gather_into(each, tensor.contiguous()[None], self.group)
        return torch.sum(each[: self.index], 0), torch.sum(each, 0)


def batch_ranks(mesh: "DeviceMesh") -> BatchRanks | None:
    """The ranks of `mesh` that split the batch, None where there is but one."""
    axes = discover()
    names = tuple(name for name in mesh.mesh_dim_names or () if axes[name].splits_batch)
    if not names:
        return None
    flat = mesh[names[0]] if len(names) == 1 else mesh[names]._flatten("_".join(names))
    return BatchRanks(group=flat.get_group(), index=flat.get_local_rank(), count=flat.size())


def whole(tensor: "Tensor") -> "Tensor":
    """`tensor`, or the whole that a DTensor stands for."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def give_gradient(tensor: "Tensor", factor: float, *groups: "ProcessGroup") -> "Tensor":
    """`tensor`, whose gradient is multiplied by `factor` and summed over the ranks of `groups`."""
    if factor == 1.0 and not groups:
        return tensor
    given: Tensor = _give_gradient().apply(tensor, factor, groups)
    return given


@functools.cache
def _give_gradient() -> Any:
    """The autograd function of `give_gradient`, made where torch is at hand."""
    import torch
    import torch.distributed as dist

    class GiveGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: Any, factor: float, groups: Any) -> Any:
            ctx.factor, ctx.groups = factor, groups
            return tensor.view_as(tensor)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            summed = gradients[0] * ctx.factor
            for group in ctx.groups:
                dist.all_reduce(summed, group=group)
            return summed, None, None

    return GiveGradient


def meetings(axis: str, layouts: Layouts) -> list[tuple[tuple[str, ...], NDArray[np.bool_]]]:
    """The groups of axes that split the batch of which `axis` is the first, each with the rows
    [num_layouts] in which these and no others do.

    What all such ranks send each other is told by the first of their axes.
    """
    splitting = sorted((a.order, name) for name, a in discover().items() if a.splits_batch)
    names = [name for _, name in splitting]
    others = names[names.index(axis) + 1 :]
    found = []
    for size in range(len(others) + 1):
        for chosen in itertools.combinations(others, size):
            group = (axis, *chosen)
            rows = np.ones(layouts.num_layouts, dtype=bool)
            for name in names:
                rows &= (layouts.degree(name) > 1) == (name in group)
            found.append((group, rows))
    return found


def num_batch_ranks(layouts: Layouts) -> NDArray[np.int64]:
    """How many ranks split the batch, [num_layouts]."""
    count = np.ones(layouts.num_layouts, dtype=np.int64)
    for name, axis in discover().items():
        count *= layouts.degree(name) if axis.splits_batch else 1
    return count
