"""Linear maps as their weights are cut, and dropout of tensors that are cut."""

from collections.abc import Callable
from typing import Any

from armillary.axes.autocast import narrowed
from armillary.axes.dropout import drop
from armillary.axes.linear import linear


def apply_linear(
    cut: Any, function: Any, x: Any, weight: Any, bias: Any = None, token_dim: int = -2
) -> Any:
    """A linear map as its weight is cut: into a region, out of one, or neither."""
    from torch.distributed.tensor import Shard

    if cut.mesh_dim(weight) is None:
        return linear(function, x, weight, bias)
    x = cut.on_mesh(x, weight)
    if cut.is_cut(weight, 0):
        return linear(function, cut.entered(x), weight, bias)
    if cut.is_cut(weight, 1):
        x = x if cut.is_cut(x, -1) else cut.laid(narrowed(x), Shard(x.ndim - 1))
        return cut.left(linear(function, x, weight, bias), token_dim)
    x = cut.entered(x) if cut.is_cut(x, -1) else x
    return linear(function, x, weight, bias)


def _multiply(cut: Any, function: Any, x: Any, y: Any, **kwargs: Any) -> Any:
    """Products of many matrices, cut alike by a dim before them: each rank's own.

    torch's rules make two dims one for it, and their gradients may not lie in memory as expected.
    """
    tensors = (x, y)
    cut_dims = [
        {p.dim if p.is_shard() else None for p in getattr(t, "placements", ())} for t in tensors
    ]
    alike = (
        all(cut.mesh_dim(t) is not None for t in tensors)
        and x.placements == y.placements
        and x.shape[:-2] == y.shape[:-2]
        and not any(p.is_partial() for p in x.placements)
        and any(dim is not None for dim in cut_dims[0])
        and all(dim is None or dim < x.ndim - 2 for dim in cut_dims[0])
    )
    if not alike:
        return function(x, y, **kwargs)
    out = function(*(t.to_local() for t in tensors))
    return cut.joined(out, x, x.placements, [*x.shape[:-1], y.shape[-1]])


def _norm(cut: Any, function: Any, x: Any, normalized_shape: Any, *args: Any, **kwargs: Any) -> Any:
    """A norm over the last dims; what is cut by one of them is made whole."""
    if any(cut.is_cut(x, dim) for dim in range(x.ndim - len(normalized_shape), x.ndim)):
        x = cut.entered(x, is_narrowed=False)
    return function(x, normalized_shape, *args, **kwargs)


def apply_dropout(cut: Any, function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Zeros drawn for the whole tensor on every rank (`axes/dropout.py`)."""
    return drop(function, x, *args, **kwargs)


HANDLERS: dict[str, Callable[..., Any]] = {
    "linear": apply_linear,
    **dict.fromkeys(("layer_norm", "rms_norm"), _norm),
    **dict.fromkeys(("matmul", "bmm", "__matmul__"), _multiply),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), apply_dropout),
}
