"""Projections that several maps share: pieces of one tensor, each cut by its own units.

Of queries, keys and values that lie one after the other in one output a rank holds a run of
features, not its part of each. The ranks exchange them, so that every piece is cut alike.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def exchange(cut: Any, x: Any, dim: int, sizes: Sequence[int]) -> "tuple[DTensor, ...]":
    """The pieces of `x`, of `sizes` along `dim`, each cut along `dim`, by one all-to-all.

    The gradients go back the same way. Sizes that the degree does not divide are made whole.
    """
    import torch
    from torch.distributed._functional_collectives import all_to_all_single_autograd
    from torch.distributed.tensor import Replicate

    mesh_dim, dim = cut.mesh_dim(x), dim % x.ndim
    degree, rank = x.device_mesh.size(mesh_dim), x.device_mesh.get_local_rank(mesh_dim)
    if any(size % degree for size in sizes):
        whole: Any = torch.split(cut.laid(x, Replicate()), list(sizes), dim)
        return tuple(whole)
    sent, received = _runs(sizes, degree, rank)
    local = x.to_local().movedim(dim, 0)
    order = [row for runs in sent for run in runs for row in run]
    local = local.index_select(0, torch.tensor(order, dtype=torch.long, device=x.device))
    flat = all_to_all_single_autograd(
        local.contiguous(),
        [sum(map(len, runs)) for runs in received],
        [sum(map(len, runs)) for runs in sent],
        (x.device_mesh, mesh_dim),
    )
    rows = [row for runs in received for run in runs for row in run]
    place = sorted(range(len(rows)), key=rows.__getitem__)
    mine = flat.index_select(0, torch.tensor(place, dtype=torch.long, device=x.device))
    parts = mine.split([size // degree for size in sizes])
    return tuple(
        cut.joined(
            part.movedim(0, dim), x, x.placements, [*x.shape[:dim], size, *x.shape[dim + 1 :]]
        )
        for part, size in zip(parts, sizes, strict=True)
    )


def _runs(
    sizes: Sequence[int], degree: int, rank: int
) -> tuple[list[list[range]], list[list[range]]]:
    """For every other rank the runs of features sent to it and received from it.

    Those sent are counted from the first that this rank holds, those received from the first of
    all pieces.
    """
    share = sum(sizes) // degree

    def between(holder: int, taker: int) -> list[range]:
        """What `holder` holds of the taker's parts of the pieces."""
        start, runs = 0, []
        for size in sizes:
            part = size // degree
            low = max(start + taker * part, holder * share)
            high = min(start + (taker + 1) * part, (holder + 1) * share)
            runs.append(range(low, max(low, high)))
            start += size
        return runs

    first = rank * share
    sent = [
        [range(run.start - first, run.stop - first) for run in between(rank, other)]
        for other in range(degree)
    ]
    return sent, [between(other, rank) for other in range(degree)]


def cut_again(whole: Any, like: Any) -> "DTensor":
    """A tensor that is whole on every rank, cut as `like` is; partial sums stay whole."""
    from torch.distributed.tensor import Replicate

    wanted = [p if p.is_shard() else Replicate() for p in like.placements]
    found: DTensor = whole.redistribute(like.device_mesh, wanted)
    return found


def _split(cut: Any, function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """`chunk` and `split`: pieces of what is cut along their own dim are exchanged."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if not cut.is_cut(x, dim):
        return function(x, *args, **kwargs)
    import torch

    whole = torch.empty(x.shape, device="meta")
    return exchange(cut, x, dim, [part.shape[dim] for part in function(whole, *args, **kwargs)])


def _view(cut: Any, function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """`view` and its like: pieces that get a dim of their own are exchanged."""
    import torch

    placement = cut.placement(x)
    if placement is None or not placement.is_shard():
        return function(x, *args, **kwargs)
    shape = function(torch.empty(x.shape, device="meta"), *args, **kwargs).shape
    dim = x.ndim - 1
    has_pieces = len(shape) > x.ndim and shape[:dim] == x.shape[:dim] and cut.is_cut(x, dim)
    if has_pieces and (x.shape[dim], shape[dim]) in cut.regions.pieces:
        return _stacked(cut, x, shape)
    found = _viewed(cut, function, x, *args, **kwargs)
    if found.requires_grad and found is not x:
        found.register_hook(partial(_in_order, cut))
    return found


def _in_order(cut: Any, gradient: Any) -> Any:
    """A gradient whose part lies in memory in the order of its dims, as a view of it needs."""
    if cut.mesh_dim(gradient) is None or (local := gradient.to_local()).is_contiguous():
        return gradient
    return cut.joined(local, gradient, gradient.placements, gradient.shape)


def _viewed(cut: Any, function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    import torch
    from torch.distributed.tensor import Replicate

    try:
        return function(x, *args, **kwargs)
    except RuntimeError as error:
        if "view size" in str(error):  # the part does not lie in memory as the whole would
            return function(x.clone(memory_format=torch.contiguous_format), *args, **kwargs)
        if "shard" not in str(error):
            raise
        return function(cut.laid(x, Replicate()), *args, **kwargs)


def _stacked(cut: Any, x: Any, shape: Sequence[int]) -> "DTensor":
    """`x` as `shape`, its last dim as pieces, each of them cut alike."""
    import torch
    from torch.distributed.tensor import Replicate, Shard

    dim, number = x.ndim - 1, shape[x.ndim - 1]
    degree = x.device_mesh.size(cut.mesh_dim(x))
    if shape[dim + 1] % degree:
        whole: DTensor = cut.laid(x, Replicate()).view(shape)
        return whole
    parts = exchange(cut, x, dim, [x.shape[dim] // number] * number)
    local = torch.stack([part.to_local() for part in parts], dim)
    inner = [shape[dim + 1] // degree, *shape[dim + 2 :]]
    local = local.view(*local.shape[:dim], number, *inner)
    joined: DTensor = cut.joined(local, x, cut.placed(x, Shard(dim + 1)), shape)
    return joined


HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("chunk", "split", "tensor_split", "split_with_sizes"), _split),
    **dict.fromkeys(("view", "reshape", "unflatten", "flatten"), _view),
}
