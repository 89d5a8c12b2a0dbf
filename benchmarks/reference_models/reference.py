"""What a reference model is: a published architecture, its input, and the figures it must meet."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A model at its published size and input.

    `build` makes the module, whose forward pass takes what `batch(num_samples)` gives and returns
    the loss. `num_parameters` and `forward_flops` (of a sample, a multiplication and an addition
    as two) are published figures, None where the source prints none; `figures` says where they
    are from. `source` is the paper and table of the architecture, `input` the size of a sample
    and where it is stated. `units` says how many of what a source counts there are in a sample
    (tokens, frames), `varies` that samples are of unlike lengths, and `stretch` the lengths that a
    long loop is traced at and stretched to.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    source: str
    input: str
    num_parameters: float | None = None
    forward_flops: float | None = None
    figures: str = ""
    tolerance: float = 0.01
    units: dict[str, float] = field(default_factory=dict)
    varies: bool = False
    stretch: tuple[Callable[[int, int], Batch], int, int, int] | None = None


def images(*size: int) -> Callable[[int], torch.Tensor]:
    """Numbers of a size a sample, such as pictures: channels, rows, columns; on the meta device."""
    return lambda num_samples: torch.empty(num_samples, *size, device="meta")


def numbers(*size: int, dtype: Any = torch.int64) -> Callable[[int], torch.Tensor]:
    """Whole numbers such as classes or tokens, on the meta device."""
    return lambda num_samples: torch.empty(num_samples, *size, dtype=dtype, device="meta")


def together(*parts: Callable[[int], torch.Tensor]) -> Callable[[int], Batch]:
    """A batch of several tensors."""
    return lambda num_samples: tuple(part(num_samples) for part in parts)
