"""Dropout of DTensors on a CPU: the zeros that the serial program draws, cut as the tensor is.

On accelerators torch keeps the draws of ranks apart or alike itself, as the placement asks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from armillary.axes.stand_in import standing_in

if TYPE_CHECKING:
    from torch import nn

NAMES = ("dropout", "dropout1d", "dropout2d", "dropout3d")


def drop_alike(part: "nn.Module") -> None:
    """Have dropout in `part` draw for the whole tensor on every rank, and keep the rank's part."""
    from armillary.axes.compose import compute_in

    compute_in(part, _dropping)


@contextmanager
def _dropping() -> Iterator[None]:
    with standing_in(dict.fromkeys(NAMES, drop)):
        yield


def drop(
    function: Any, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Any:
    """`function(x, p, training)`, of which every rank draws the whole and keeps its part."""
    import torch
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(x, DTensor) or x.device.type != "cpu" or not training or p == 0:
        return function(x, p, training, inplace)
    mesh = x.device_mesh
    lies = [placement if placement.is_shard() else Replicate() for placement in x.placements]
    whole = DTensor.from_local(
        function(torch.ones(x.shape, dtype=x.dtype), p, training),
        mesh,
        [Replicate()] * mesh.ndim,
        run_check=False,
    )
    return x.redistribute(mesh, lies) * whole.redistribute(mesh, lies)
