"""A linear map of DTensors computed on what is local, without the rules' detour over two dims.

torch's rules flatten samples and positions into one dim before a product, which no plain placement
describes where positions are cut; on a mesh of two axes, planning around that costs the first step
most of a minute. The map itself needs none of it.
"""

# Shapes: x [..., F] of F features in, weight [G, F] of G out
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from armillary.axes.stand_in import standing_in

if TYPE_CHECKING:
    from torch import nn


def multiply_locally(part: "nn.Module") -> None:
    """Have linear maps in `part` take DTensors so; the tensor axis does it by itself."""
    from armillary.axes.compose import compute_in

    compute_in(part, _multiplying)


@contextmanager
def _multiplying() -> Iterator[None]:
    with standing_in({"linear": linear}):
        yield


def linear(function: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    """`function(x, weight, bias)`, torch's linear map, on local parts where their cuts agree."""
    import torch
    from torch.distributed.tensor import DTensor

    if not (isinstance(x, DTensor) and isinstance(weight, DTensor)):
        return function(x, weight, bias)
    laid = _lay(x, weight, bias)
    if laid is None:
        return function(x, weight, bias)
    out, grad_x, grad_weight, grad_bias = laid
    local = function(
        x.to_local(grad_placements=grad_x),
        weight.to_local(grad_placements=grad_weight),
        None if bias is None else bias.to_local(grad_placements=grad_bias),
    )
    shape = torch.Size((*x.shape[:-1], weight.shape[0]))
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return DTensor.from_local(
        local, x.device_mesh, out, run_check=False, shape=shape, stride=tuple(strides)
    )


def _lay(x: Any, weight: Any, bias: Any) -> tuple[list[Any], ...] | None:
    """How the result and the gradients of x, weight and bias lie; None where cuts do not agree."""
    if x.device_mesh != weight.device_mesh or x.ndim < 2:
        return None
    if bias is not None and getattr(bias, "device_mesh", None) != x.device_mesh:
        return None
    rows = []
    for dim, (of_x, of_weight) in enumerate(zip(x.placements, weight.placements, strict=True)):
        of_bias = None if bias is None else bias.placements[dim]
        row = _lay_dim(of_x, of_weight, of_bias, x.ndim - 1)
        if row is None:
            return None
        rows.append(row)
    return tuple(list(column) for column in zip(*rows, strict=True))


def _lay_dim(of_x: Any, of_weight: Any, of_bias: Any, last: int) -> tuple[Any, ...] | None:
    """The same along one dim of the mesh."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    def is_cut(placement: Any, dim: int) -> bool:
        return type(placement) is Shard and placement.dim == dim

    whole = Replicate()
    if of_weight.is_replicate() and (of_bias is None or of_bias.is_replicate()):
        if of_x.is_replicate():
            return whole, whole, whole, whole
        if type(of_x) is Shard and of_x.dim < last:
            return of_x, of_x, Partial(), Partial()
    if is_cut(of_weight, 0) and of_x.is_replicate() and (of_bias is None or is_cut(of_bias, 0)):
        return Shard(last), Partial(), Shard(0), Shard(0)
    if is_cut(of_weight, 1) and is_cut(of_x, last) and of_bias is None:
        return Partial(), of_x, Shard(1), whole
    return None
