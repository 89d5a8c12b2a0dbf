"""Operations on tokens, of which every rank holds a part, where torch's own rules send more.

torch's rule for the gradient of a selection adds zeros of the whole tensor over the ranks, and its
rules for the parts of a mean add up each by itself.
"""

# Shapes: [..., N, E] of N tokens with E entries each
from collections.abc import Callable
from functools import cache
from typing import Any


def select(function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """`function(x, dim, index)` of local parts where x and index lie alike, or torch's own."""
    import torch
    from torch.distributed.tensor import DTensor

    index = next((v for v in (*args, *kwargs.values()) if isinstance(v, DTensor)), None)
    dims = [v for v in (*args, *kwargs.values()) if isinstance(v, int)]
    if not isinstance(x, DTensor) or index is None or not dims:
        return function(x, *args, **kwargs)
    along = dims[0] % x.ndim
    is_alike = x.placements == index.placements and x.shape[:along] == index.shape[:along]
    if not is_alike or not all(_keeps(placement, along) for placement in x.placements):
        return function(x, *args, **kwargs)
    parts = [v.to_local() if isinstance(v, DTensor) else v for v in args]
    named = {k: v.to_local() if isinstance(v, DTensor) else v for k, v in kwargs.items()}
    return DTensor.from_local(
        function(x.to_local(), *parts, **named).contiguous(),
        x.device_mesh,
        x.placements,
        run_check=False,
        shape=index.shape,
        stride=torch.empty(index.shape, device="meta").stride(),
    )


def _keeps(placement: Any, along: int) -> bool:
    """Whether every rank holds all entries along a dim, of other places or of the same."""
    return placement.is_replicate() or (placement.is_shard() and placement.dim != along)


def mean(function: Any, x: Any) -> Any:
    """The mean over the tokens [..., N, E], whole on every rank: one sum over the ranks.

    Its gradient is the same on all of them, and none is sent.
    """
    from torch.distributed.tensor import DTensor, Replicate

    along = x.ndim - 2
    if not isinstance(x, DTensor) or not all(_keeps(p, x.ndim - 1) for p in x.placements):
        return function(x)
    kept: list[Any] = list(x.placements)
    local = x.to_local().sum(-2) / x.shape[-2]
    for dim, placement in enumerate(kept):
        if placement.is_shard(along):
            local = _added().apply(local, x.device_mesh.get_group(dim))
            kept[dim] = Replicate()
    return DTensor.from_local(local, x.device_mesh, kept, run_check=False)


@cache
def _added() -> Any:
    """Sums over ranks that all go on alike; made when first used, as torch is imported late."""
    import torch
    import torch.distributed as dist

    class Added(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, local: Any, group: Any) -> Any:
            total = local.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total, group=group)
            return total

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0], None

    return Added


ON_TOKENS: dict[str, Callable[..., Any]] = {
    "gather": select,
    "take_along_dim": select,
    "token_mean": mean,
}
"""What is taken from a mode of torch's functions, by the function's name."""
