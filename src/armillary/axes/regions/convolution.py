"""Convolutions cut by channels: of what it puts out the first of a pair, of what it takes the next.

torch's DTensor has rules for whole convolutions only. Here each rank convolves its own channels,
norms by groups and what acts on each channel alone go between, and partial sums are added after
the second.
"""

# Shapes: [B, C, ...] of B samples, C channels and the grid's dims; weights [C out, C in, ...]
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from armillary.axes.autocast import narrowed
from armillary.axes.stand_in import original

if TYPE_CHECKING:
    from torch import nn

CHANNELS = 1


def pad_inside(part: "nn.Module", cut: Any) -> None:
    """Have convolutions of `part` with a padding mode of their own pad what has entered a region.

    The gradient of what enters is summed, and is smaller than that of what is padded.
    """
    from torch.nn.modules.conv import _ConvNd

    for module in part.modules():
        if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
            module.__dict__.setdefault("_conv_forward", partial(_convolve_padded, cut, module))


def _convolve_padded(cut: Any, module: Any, x: Any, weight: Any, bias: Any) -> Any:
    if not cut.is_cut(weight, 0):
        return type(module)._conv_forward(module, x, weight, bias)
    num_dims = weight.ndim - 2
    sizes = module._reversed_padding_repeated_twice
    pad = partial(original("pad"), pad=sizes, mode=module.padding_mode)
    given = module.stride, (0,) * num_dims, module.dilation, module.groups
    return _convolve(cut, original(f"conv{num_dims}d"), x, weight, bias, *given, padded=pad)


def _convolve(
    cut: Any,
    function: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    *args: Any,
    padded: Callable[[Any], Any] = lambda local: local,
    **kwargs: Any,
) -> Any:
    from torch.distributed.tensor import Partial, Shard

    if cut.mesh_dim(weight) is None:
        return function(x, weight, bias, *args, **kwargs)
    x = cut.on_mesh(x, weight)
    if cut.is_cut(weight, 0):
        x = cut.entered(x)
        local = x.to_local(grad_placements=cut.placed(x, Partial()))
        weights = (cut.local_weight(w, x) for w in (weight, bias))
        out = function(padded(local), *weights, *args, **kwargs)
        return cut.joined(out, x, cut.placed(x, Shard(CHANNELS)), _shape(out, x, len(weight)))
    if cut.is_cut(weight, 1):
        x = x if cut.is_cut(x, CHANNELS) else cut.laid(narrowed(x), Shard(CHANNELS))
        out = function(x.to_local(), cut.local_weight(weight, x), None, *args, **kwargs)
        shape = _shape(out, x, len(weight))
        found = cut.left(cut.joined(out, x, cut.placed(x, Partial()), shape), 0)
        return (
            found
            if bias is None
            else found + bias.view(-1, *[1] * (found.ndim - 2)).to(found.dtype)
        )
    x = cut.entered(x) if cut.is_cut(x, CHANNELS) else x
    return function(x, weight, bias, *args, **kwargs)


def _shape(local: Any, x: Any, num_channels: int) -> list[int]:
    """The shape of the whole of what a convolution of `x` puts out."""
    return [x.shape[0], num_channels, *local.shape[2:]]


def _norm_groups(
    cut: Any,
    function: Any,
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """Whole groups lie on one rank."""
    from torch.distributed.tensor import Shard

    if not cut.is_cut(x, CHANNELS):
        return function(x, num_groups, weight, bias, eps)
    degree = x.device_mesh.size(cut.mesh_dim(x))
    if num_groups % degree:
        return function(cut.entered(x, is_narrowed=False), num_groups, weight, bias, eps)
    mine = (
        None if w is None else cut.local_weight(cut.laid(w, Shard(0)), x) for w in (weight, bias)
    )
    out = function(x.to_local(), num_groups // degree, *mine, eps)
    return cut.joined(out, x, x.placements, x.shape)


def _on_each_channel(cut: Any, function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """What acts on the dims of the grid alone is done on what a rank holds."""
    placements = [p for p in getattr(x, "placements", ()) if not p.is_replicate()]
    num_kept = x.ndim - _num_grid_dims(function.__name__, x, *args, **kwargs)
    if not hasattr(x, "placements") or not all(
        p.is_shard() and p.dim < num_kept for p in placements
    ):
        return function(x, *args, **kwargs)
    found = function(x.to_local(), *args, **kwargs)
    if isinstance(found, tuple):  # with the indices of the largest
        return tuple(_rejoined(cut, part, x) for part in found)
    return _rejoined(cut, found, x)


def _rejoined(cut: Any, local: Any, x: Any) -> Any:
    from itertools import zip_longest

    num_grid_dims = next(
        (
            local.ndim - dim
            for dim, (here, there) in enumerate(zip_longest(local.shape, x.to_local().shape))
            if here != there
        ),
        0,
    )
    kept = local.ndim - num_grid_dims
    return cut.joined(local, x, x.placements, [*x.shape[:kept], *local.shape[kept:]])


def _num_grid_dims(name: str, x: Any, *args: Any, **kwargs: Any) -> int:
    """How many of the last dims a function mixes or changes."""
    if name == "pad":
        return len(kwargs.get("pad", args[0] if args else ())) // 2
    if name in ("interpolate", "upsample"):
        return int(x.ndim) - 2
    return int(name[-2]) if name[-2:] in ("1d", "2d", "3d") else int(x.ndim)


POOLS = [
    f"{kind}_pool{dims}d"
    for dims in (1, 2, 3)
    for kind in ("avg", "max", "_max", "adaptive_avg", "adaptive_max", "_adaptive_max", "lp")
]

HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolve),
    **dict.fromkeys(("pad", "interpolate", "upsample", *POOLS), _on_each_channel),
    "group_norm": _norm_groups,
}
