"""Batch norm over all samples of a micro batch, whichever ranks hold them.

The statistics of the ranks are merged, with the number of values that each has seen, so shares may
differ in size, and a rank whose samples do not count adds nothing. It runs on every backend;
torch's SyncBatchNorm runs on GPUs only.

Source: Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 1 and the gradients below it; merging,
Chan, Golub & LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", Stanford STAN-CS-79-773, eq. 2.1.
"""

# Shapes: C channels, W ranks of a group
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from armillary.axes.batch.ranks import (
    batch_ranks,
    counts_here,
    give_gradient,
    meetings,
    num_batch_ranks,
)
from armillary.axes.door import Transfer
from armillary.axes.gather import gather_into
from armillary.spec import ModelGraph
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import DeviceMesh
    from torch.overrides import TorchFunctionMode

NUM_BYTES_LEAST = 4  # statistics are added up in float32 or wider


def norm_over_ranks(part: "nn.Module", mesh: "DeviceMesh") -> None:
    """Have every batch norm of `part` take its statistics over all ranks that split the batch.

    Names, parameters and running statistics stay as they are; the latter are the serial ones.
    """
    from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

    ranks = batch_ranks(mesh)
    groups = () if ranks is None else (ranks.group,)
    for module in part.modules():
        if not isinstance(module, _BatchNorm):
            continue
        forward = module.forward
        if isinstance(module, SyncBatchNorm):
            forward = functools.partial(_BatchNorm.forward, module)
        module.__dict__["forward"] = functools.partial(_forward, forward, _mode_class()(groups))


def norm_traffic(axis: str, graph: ModelGraph, layouts: Layouts) -> list[Transfer]:
    """What batch norms send where `axis` is the first that splits the batch: statistics forward,
    and the sums of gradients backward.
    """
    item_bytes = max(NUM_BYTES_LEAST, graph.parameter_bytes // max(graph.num_parameters, 1))
    count = num_batch_ranks(layouts)
    return [
        Transfer(
            collective=collective,
            group=group,
            bytes=(size * item_bytes).astype(np.float64),
            per_step=rows.astype(np.float64),
            hidden_behind="",
            path=path,
        )
        for path, channels in graph.batch_norms.items()
        for group, rows in meetings(axis, layouts)
        for collective, size in [
            ("all_gather_into_tensor", (2 * channels + 1) * count),
            ("all_reduce", 2 * channels * np.ones_like(count)),
        ]
    ]


def _forward(forward: Any, mode: "TorchFunctionMode", *args: Any, **kwargs: Any) -> Any:
    """The module's own forward pass, in which the function `batch_norm` is that of all ranks."""
    with mode:
        return forward(*args, **kwargs)


@functools.cache
def _mode_class() -> Any:
    """A mode in which `torch.nn.functional.batch_norm` is `batch_norm` over some groups."""
    import torch
    from torch.overrides import TorchFunctionMode

    own = torch.nn.functional.batch_norm

    class OverRanks(TorchFunctionMode):
        def __init__(self, groups: Any) -> None:
            super().__init__()
            self.groups = groups

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function is not own:
                return function(*args, **(kwargs or {}))
            return batch_norm(self.groups, *args, **(kwargs or {}))

    return OverRanks


def batch_norm(
    groups: Any,
    input: "Tensor",  # torch's name of it
    running_mean: "Tensor | None" = None,
    running_var: "Tensor | None" = None,
    weight: "Tensor | None" = None,
    bias: "Tensor | None" = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> "Tensor":
    """`input` normed by channel over the samples of all `groups` of ranks; same shape.

    The arguments are those of `torch.nn.functional.batch_norm`. A DTensor may be cut along any
    dim; the ranks along one that is not the channels' share the statistics too.
    """
    import torch

    x, whole, inner = _local_input(input)
    weight, bias = _local_parameter(weight, inner), _local_parameter(bias, inner)
    if training:
        found, mean_C, variance_C = _function().apply(
            x, weight, bias, eps, (*groups, *inner), counts_here()
        )
        for running_C, now_C in ((running_mean, mean_C), (running_var, variance_C)):
            if running_C is not None:
                running_C.lerp_(now_C.to(running_C.dtype), momentum)
    else:
        found = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    result: Tensor = found if whole is None else _as_placed(found, whole)
    return result


def _local_input(tensor: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """The rank's part of an input with all its channels, the whole it is of if that is a DTensor,
    and the groups of ranks that hold other samples or places.
    """
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(tensor, DTensor):
        return tensor, None, ()
    mesh = tensor.device_mesh
    kept = [p if getattr(p, "dim", 1) != 1 else Replicate() for p in tensor.placements]
    tensor = tensor.redistribute(mesh, kept)
    cut = [dim for dim, p in enumerate(kept) if not p.is_replicate()]
    local = tensor.to_local(grad_placements=kept)
    return local, tensor, tuple(mesh.get_group(dim) for dim in cut)


def _local_parameter(parameter: Any, groups: tuple[Any, ...]) -> Any:
    """A parameter as a plain tensor; its gradient adds up those of the ranks of `groups`."""
    from torch.distributed.tensor import DTensor, Replicate

    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        parameter = parameter.redistribute(mesh, [Replicate()] * mesh.ndim).to_local()
    return parameter if parameter is None else give_gradient(parameter, 1.0, *groups)


def _as_placed(local: Any, whole: Any) -> Any:
    from torch.distributed.tensor import DTensor

    mesh, placements = whole.device_mesh, whole.placements
    shape, stride = whole.shape, whole.stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def _statistics(x: Any, groups: Any, counts: bool) -> tuple[Any, Any, Any]:
    """Mean [C] and sum of squared differences from it [C], and the number of values [1]."""
    import torch
    import torch.distributed as dist

    num_channels = x.shape[1]
    wide = x.transpose(0, 1).reshape(num_channels, -1).to(_wide(x.dtype))
    number = wide.new_tensor([wide.shape[1] * counts])
    mean_C, squares_C = wide.new_zeros(2, num_channels)
    if counts and wide.shape[1]:
        mean_C = wide.mean(1)
        squares_C = (wide - mean_C[:, None]).square().sum(1)
    for group in groups:
        own = torch.cat([mean_C, squares_C, number])
        each = own.new_empty(dist.get_world_size(group), len(own))
        gather_into(each, own[None], group)
        mean_WC, squares_WC, number_W1 = each.split([num_channels, num_channels, 1], dim=1)
        number = number_W1.sum(0)
        mean_C = (number_W1 * mean_WC).sum(0) / number
        squares_C = (squares_WC + number_W1 * (mean_WC - mean_C).square()).sum(0)
    return mean_C, squares_C, number


def _forward_norm(ctx: Any, x: Any, weight: Any, bias: Any, eps: float, *how: Any) -> Any:
    ctx.groups, ctx.counts, ctx.has_bias = *how, bias is not None
    mean_C, squares_C, number = _statistics(x, *how)
    scale_C = (squares_C / number + eps).rsqrt()
    ctx.save_for_backward(x, weight, mean_C, scale_C, number)
    normed = (x - _wise(mean_C, x)) * _wise(scale_C, x)
    normed = normed if weight is None else normed * _wise(weight, x)
    normed = normed if bias is None else normed + _wise(bias, x)
    variance_C = squares_C / (number - 1)
    ctx.mark_non_differentiable(mean_C, variance_C)
    return normed.to(x.dtype), mean_C, variance_C


def _backward_norm(ctx: Any, *gradients: Any) -> Any:
    import torch
    import torch.distributed as dist

    x, weight, mean_C, scale_C, number = ctx.saved_tensors
    given = gradients[0].to(mean_C.dtype)
    normed = (x - _wise(mean_C, x)) * _wise(scale_C, x)
    others = [dim for dim in range(x.ndim) if dim != 1]
    own_2C = torch.stack([given.sum(others), (given * normed).sum(others)])
    total_2C = own_2C.clone()
    for group in ctx.groups:
        dist.all_reduce(total_2C, group=group)
    total_2C *= ctx.counts / number  # samples that do not count had no part in the statistics
    back = given - _wise(total_2C[0], x) - normed * _wise(total_2C[1], x)
    back = back * _wise(scale_C if weight is None else scale_C * weight, x)
    by_weight = None if weight is None else own_2C[1].to(weight.dtype)
    by_bias = own_2C[0] if weight is None else own_2C[0].to(weight.dtype)
    return back.to(x.dtype), by_weight, by_bias if ctx.has_bias else None, None, None, None


@functools.cache
def _function() -> Any:
    """The autograd function of batch norm over ranks, made where torch is at hand."""
    import torch
    from torch.autograd.function import once_differentiable

    class BatchNorm(torch.autograd.Function):
        forward = staticmethod(_forward_norm)
        backward: Any = staticmethod(once_differentiable(_backward_norm))

    return BatchNorm


def _wide(dtype: Any) -> Any:
    """The dtype in which to add up values of `dtype`."""
    import torch

    return torch.promote_types(dtype, torch.float32)


def _wise(values_C: Any, like: Any) -> Any:
    """Numbers by channel, to be met with a tensor [N, C, ...]."""
    return values_C.view(1, -1, *[1] * (like.ndim - 2))
