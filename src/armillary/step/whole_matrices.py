"""Optimisers that mix the entries of a matrix, given whole matrices where ranks hold shards.

AdamW and its like treat every entry alone, so a shard is as good as the whole. Muon, Shampoo and
their like look at a gradient as a matrix; on shards they would run and give something else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

WHOLE = "needs_whole_matrices"


def needs_whole_matrices(optimizer: Optimizer) -> bool:
    """Whether `optimizer` must see whole matrices: torch's Muon, or one that says so.

    An optimiser says so by an attribute `needs_whole_matrices = True`.
    """
    return isinstance(optimizer, torch.optim.Muon) or bool(getattr(optimizer, WHOLE, False))


@contextmanager
def whole_matrices(optimizer: Optimizer) -> Iterator[None]:
    """Have `optimizer` hold whole parameters, gradients and state inside, and only then.

    Every rank then does the whole update; between steps it holds its shards of them.
    """
    if not needs_whole_matrices(optimizer):
        yield
        return
    pairs = [
        _gathered(optimizer, group, i) for group in optimizer.param_groups for i in _places(group)
    ]
    try:
        yield
    finally:
        for pair in pairs:
            _put_back(optimizer, *pair)


def _places(group: dict[str, Any]) -> list[int]:
    """Where in a group's parameters those stand of which this rank holds a shard."""
    from torch.distributed.tensor import DTensor

    return [i for i, p in enumerate(group["params"]) if isinstance(p, DTensor)]


def _gathered(
    optimizer: Optimizer, group: dict[str, Any], i: int
) -> tuple[Any, nn.Parameter, dict[str, Any], int]:
    """The `i`-th parameter of `group` made whole in the optimiser, with its state."""
    shard = group["params"][i]
    whole = nn.Parameter(shard.detach().full_tensor())
    whole.grad = None if shard.grad is None else shard.grad.full_tensor()
    group["params"][i] = whole
    if shard in optimizer.state:
        state = optimizer.state.pop(shard)
        optimizer.state[whole] = {name: _whole(value) for name, value in state.items()}
    return shard, whole, group, i


def _whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def _put_back(
    optimizer: Optimizer, shard: Any, whole: nn.Parameter, group: dict[str, Any], i: int
) -> None:
    from torch.distributed.tensor import DTensor, Replicate

    mesh = shard.device_mesh

    def cut(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.shape != whole.shape:
            return value
        same = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return same.redistribute(mesh, shard.placements)

    group["params"][i] = shard
    shard.to_local().copy_(cut(whole.data).to_local())
    if whole in optimizer.state:
        state = optimizer.state.pop(whole)
        optimizer.state[shard] = {name: cut(value) for name, value in state.items()}
