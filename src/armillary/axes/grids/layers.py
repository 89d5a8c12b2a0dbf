"""Convolutions, pools and norms on a grid of which every rank holds a run of rows.

torch's DTensor has no rules for them. Edge rows come from the neighbours (`axes/grids/halo.py`),
and the function itself runs on what is local; sums over the grid are added up over the ranks.
"""

# Shapes: [B, C, ...] of B samples, C channels and the grid's dims, one of which is cut
from collections.abc import Callable
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from armillary.axes.autocast import narrowed
from armillary.axes.grids.halo import cut_of, entry, extended, joined, refuse, window_of
from armillary.axes.grids.norm import norm_over_rows
from armillary.axes.stand_in import original, standing_in

if TYPE_CHECKING:
    from torch import Tensor, nn


def convolve_in_parts(part: "nn.Module") -> None:
    """Have convolutions, pools and group norms of `part` take grids of which a rank holds rows."""
    from torch.nn.modules.conv import _ConvNd

    from armillary.axes.compose import compute_in

    compute_in(part, _in_parts)
    for module in part.modules():
        if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
            # which otherwise pads in a step of its own, before the convolution
            module.__dict__["_conv_forward"] = partial(_convolve_padded, module)


def _in_parts() -> Any:
    return standing_in(HANDLERS)


def _convolve(
    function: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "zeros",
) -> Any:
    """A convolution of a grid of which this rank holds rows, or the function's own."""
    cut = cut_of(x)
    if cut is None or x.ndim != weight.ndim or _mixes_groups(weight, groups):
        return function(x, weight, bias, stride, padding, dilation, groups)
    place, num_dims = cut[1] - 2, x.ndim - 2
    paddings = _paddings(padding, weight, dilation, place, x)
    strides = [entry(stride, i) for i in range(num_dims)]
    window = window_of(
        function.__name__,
        x,
        cut,
        size=weight.shape[cut[1]],
        stride=strides[place],
        dilation=entry(dilation, place),
        padding="same" if padding == "same" else paddings[place],
    )
    laid = _Channels(x, weight, cut[0])
    paddings[place] = 0
    local = extended(laid.local_x(), x, cut, window, mode, 0.0)
    if mode != "zeros":
        beside = [size for size in reversed(paddings) for _ in "ab"]
        local, paddings = original("pad")(local, beside, mode=mode), [0] * num_dims
    own_bias = None if laid.is_partial else bias
    out = function(
        local,
        laid.local_weight(weight),
        None if own_bias is None else laid.local_weight(own_bias),
        stride,
        paddings,
        dilation,
        groups,
    )
    found = laid.joined(out, cut, x.shape[cut[1]] // strides[place])
    if bias is None or own_bias is not None:
        return found
    return found + bias.view(-1, *[1] * num_dims).to(found.dtype)


def _mixes_groups(weight: Any, groups: int) -> bool:
    """Whether weights are cut by channels that come in groups, which is left to others."""
    return groups > 1 and any(not p.is_replicate() for p in getattr(weight, "placements", ()))


def _paddings(padding: Any, weight: Any, dilation: Any, place: int, x: Any) -> list[int]:
    """The padding before and after each dim of the grid; "same" is uneven only where it is cut."""
    if padding == "valid":
        return [0] * (weight.ndim - 2)
    if padding != "same":
        return [entry(padding, i) for i in range(weight.ndim - 2)]
    reaches = [entry(dilation, i) * (size - 1) for i, size in enumerate(weight.shape[2:])]
    if any(reach % 2 for i, reach in enumerate(reaches) if i != place):
        raise refuse("padding", x, "windows whose size is even are padded by a number")
    return [reach // 2 for reach in reaches]


def _convolve_padded(module: Any, x: Any, weight: Any, bias: Any) -> Any:
    """What a convolution with a padding mode of its own does to a cut grid, or else its own."""
    function = original(f"conv{weight.ndim - 2}d")
    if cut_of(x) is None:
        return type(module)._conv_forward(module, x, weight, bias)
    sizes = module.stride, module.padding, module.dilation, module.groups
    return _convolve(function, x, weight, bias, *sizes, mode=module.padding_mode)


class _Channels:
    """How channels lie along the other dims of the mesh, where an axis cuts a weight by them."""

    def __init__(self, x: Any, weight: Any, rows_dim: int) -> None:
        from torch.distributed.tensor import Partial, Replicate, Shard

        self.mesh, self.rows_dim = x.device_mesh, rows_dim
        self.is_partial = False
        wanted, self.grads, self.out = list(x.placements), list(x.placements), list(x.placements)
        for dim, placement in enumerate(getattr(weight, "placements", ())):
            if dim == rows_dim:
                continue
            if placement.is_shard(0):
                wanted[dim], self.grads[dim], self.out[dim] = Replicate(), Partial(), Shard(1)
            elif placement.is_shard(1):
                wanted[dim] = self.grads[dim] = Shard(1)
                self.out[dim], self.is_partial = Partial(), True
            elif not placement.is_replicate() or x.placements[dim].is_shard(1):
                wanted[dim] = self.grads[dim] = self.out[dim] = Replicate()
        self.x = narrowed(x).redistribute(self.mesh, wanted)
        self.num_channels = weight.shape[0]

    def local_x(self) -> "Tensor":
        local: Tensor = self.x.to_local(grad_placements=self.grads)
        return local

    def local_weight(self, weight: Any) -> "Tensor":
        """This rank's part of a weight, whose gradient is a sum over the rows of all ranks."""
        from torch.distributed.tensor import DTensor, Partial

        if not isinstance(weight, DTensor):
            return weight
        grads = [
            Partial() if there.is_shard() and there.dim != 1 else here
            for here, there in zip(weight.placements, self.x.placements, strict=True)
        ]
        return weight.to_local(grad_placements=grads)

    def joined(self, local: "Tensor", cut: tuple[int, int], length: int) -> Any:
        from torch.distributed.tensor import Replicate

        shape = [self.x.shape[0], self.num_channels, *local.shape[2:]]
        shape[cut[1]] = length
        found = joined(local, self.mesh, self.out, shape)
        if not self.is_partial:
            return found
        whole = [Replicate() if p.is_partial() else p for p in self.out]
        return found.redistribute(self.mesh, whole)


def _on_local_rows(function: Any, x: Any, cut: tuple[int, int], *args: Any, **kwargs: Any) -> Any:
    """`function` on the local rows, where each makes its own part of what comes out."""
    out = function(x.to_local(), *args, **kwargs)
    shape = [*x.shape[:2], *out.shape[2:]]
    shape[cut[1]] = out.shape[cut[1]] * x.device_mesh.size(cut[0])
    return joined(out, x.device_mesh, x.placements, shape)


def _pool(
    function: Any,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest of each window."""
    cut = cut_of(x)
    stride = kernel_size if stride is None else stride
    if cut is None or return_indices or ceil_mode:
        given = stride, padding, dilation, ceil_mode, return_indices
        return function(x, kernel_size, *given)
    place, num_dims = cut[1] - 2, x.ndim - 2
    sizes = [entry(v, place) for v in (kernel_size, stride, dilation, padding)]
    window = window_of(function.__name__, x, cut, *sizes)
    local = extended(x.to_local(), x, cut, window, "zeros", float("-inf"))
    padding = [0 if i == place else entry(padding, i) for i in range(num_dims)]
    out = function(local, kernel_size, stride, padding, dilation)
    shape = [*x.shape[:2], *out.shape[2:]]
    shape[cut[1]] = x.shape[cut[1]] // sizes[1]
    return joined(out, x.device_mesh, x.placements, shape)


def _average(
    function: Any, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, *more: Any,
    **others: Any,
) -> Any:  # fmt: skip
    """The mean of each window, where windows touch."""
    cut = cut_of(x)
    stride = kernel_size if stride is None else stride
    if cut is None:
        return function(x, kernel_size, stride, padding, *more, **others)
    size, step, pad = (entry(v, cut[1] - 2) for v in (kernel_size, stride, padding))
    if size != step or pad or x.shape[cut[1]] % (size * x.device_mesh.size(cut[0])):
        raise refuse(function.__name__, x, "windows of a mean touch and do not overlap")
    return _on_local_rows(function, x, cut, kernel_size, stride, padding, *more, **others)


def _average_to(function: Any, x: Any, output_size: Any) -> Any:
    """The mean over the whole grid."""
    num_dims = x.ndim - 2
    if cut_of(x) is None or any(entry(output_size, i) != 1 for i in range(num_dims)):
        return function(x, output_size)
    return _mean(x, list(range(2, x.ndim)))


def _enlarge(
    function: Any,
    x: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    *more: Any,
    **others: Any,
) -> Any:
    """Every row repeated a whole number of times."""
    cut = cut_of(x)
    if cut is None:
        return function(x, size, scale_factor, mode, *more, **others)
    place, degree = cut[1] - 2, x.device_mesh.size(cut[0])
    wanted = None if size is None else entry(size, place)
    factor = wanted / x.shape[cut[1]] if wanted else entry(scale_factor, place)
    if not mode.startswith("nearest") or factor != int(factor) or x.shape[cut[1]] % degree:
        raise refuse(f"{mode} {function.__name__}", x, "rows are repeated a whole number of times")
    factors = [
        entry(size, i) / x.shape[i + 2] if size is not None else entry(scale_factor, i)
        for i in range(x.ndim - 2)
    ]
    return _on_local_rows(function, x, cut, None, [float(f) for f in factors], mode)


def _convolve_back(
    function: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """A transposed convolution whose windows touch and do not overlap."""
    from torch.distributed.tensor import Partial

    cut = cut_of(x)
    given = stride, padding, output_padding, groups, dilation
    if cut is None:
        return function(x, weight, bias, *given)
    step, pad, more = (entry(v, cut[1] - 2) for v in (stride, padding, output_padding))
    if weight.shape[cut[1]] != step or pad or more or x.shape[cut[1]] % x.device_mesh.size(cut[0]):
        raise refuse(function.__name__, x, "windows touch and do not overlap")
    if any(not p.is_replicate() for p in weight.placements):
        raise refuse(function.__name__, x, "weights are whole")
    grads = [
        Partial() if p.is_shard() else here
        for p, here in zip(x.placements, weight.placements, strict=True)
    ]
    own = [None if w is None else w.to_local(grad_placements=grads) for w in (weight, bias)]
    out = function(x.to_local(), *own, *given)
    shape = [x.shape[0], weight.shape[1] * groups, *out.shape[2:]]
    shape[cut[1]] = x.shape[cut[1]] * step
    return joined(out, x.device_mesh, x.placements, shape)


def _norm_groups(
    function: Any,
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """Mean and variance over all rows of the grid; whole groups lie on one rank."""
    from torch.distributed.tensor import Replicate

    cut = cut_of(x)
    if cut is None:
        return function(x, num_groups, weight, bias, eps)
    mesh, shares = x.device_mesh, 1
    for dim, placement in enumerate(x.placements):
        shares *= mesh.size(dim) if placement.is_shard(1) else 1
    if num_groups % shares:
        laid = [Replicate() if p.is_shard(1) else p for p in x.placements]
        x, shares = x.redistribute(mesh, laid), 1
    local = norm_over_rows(x.to_local(), num_groups // shares, eps, mesh.get_group(cut[0]))
    shape = [-1] + [1] * (x.ndim - 2)
    local = local if weight is None else local * _own_channels(weight, x).view(shape)
    local = local if bias is None else local + _own_channels(bias, x).view(shape)
    return joined(local, mesh, x.placements, x.shape)


def _own_channels(weight: Any, x: Any) -> "Tensor":
    """One number for each local channel of `x`; gradients are sums over the rows of all ranks."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    wanted = [Shard(0) if p.is_shard(1) else Replicate() for p in x.placements]
    grads = [
        Partial() if p.is_shard() and p.dim != 1 else here
        for p, here in zip(x.placements, wanted, strict=True)
    ]
    if list(weight.placements) != wanted:  # or its gradient would be summed at once
        weight = weight.redistribute(x.device_mesh, wanted)
    own: Tensor = weight.to_local(grad_placements=grads)
    return own


def _mean(x: Any, dims: list[int]) -> Any:
    """The mean over `dims`, its partial sums added; DTensor might rather cut x by samples."""
    from torch.distributed.tensor import Replicate

    sums = x.sum(dims, keepdim=True)
    whole = [Replicate() if p.is_partial() else p for p in sums.placements]
    return sums.redistribute(x.device_mesh, whole) / prod(x.shape[dim] for dim in dims)


HANDLERS: dict[str, Callable[..., Any]] = {
    **{f"conv{n}d": _convolve for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _convolve_back for n in (1, 2, 3)},
    **{f"max_pool{n}d": _pool for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _average for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _average_to for n in (1, 2, 3)},
    "interpolate": _enlarge,
    "group_norm": _norm_groups,
}
