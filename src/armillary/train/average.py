"""A running average of the parameters, which is what a run evaluates and what its users get.

Source: Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging", SIAM J.
Control Optim. 30(4); with exponential weights as in Tarvainen & Valpola 2017, arXiv 1703.01780.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Average:
    """After every step: average = decay * average + (1 - decay) * parameters.

    It lies as the parameters do, a shard where they are shards; buffers are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.values: dict[str, Any] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters after a step in."""
        averages = [_local(value) for value in self.values.values()]
        torch._foreach_lerp_(averages, self._parameters(), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the model hold the average inside, and its own parameters again after."""
        self.swap()
        try:
            yield
        finally:
            reshard(self.model)
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters of the model and the average."""
        for parameter, value in zip(self._parameters(), self.values.values(), strict=True):
            average = _local(value)
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def _parameters(self) -> list[torch.Tensor]:
        return [_local(parameter.detach()) for parameter in self.model.parameters()]


def reshard(model: nn.Module) -> None:
    """Give back the gathered parameters that a forward pass without a backward pass leaves."""
    from torch.distributed.fsdp import FSDPModule

    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
