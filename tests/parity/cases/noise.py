"""The regression of `mlp.py` by a model that draws in every way that a model may."""

import torch
from torch import nn

from tests.parity.cases.mlp import data, loss, optimizer  # noqa: F401

settings = {"epochs": 1, "global_batch_size": 16}


class Noisy(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(8, width), nn.Linear(width, 1)
        self.register_buffer("seen", torch.rand(8))

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(x_BD.shape, dtype=x_BD.dtype) > 0.1
        x_BD = (x_BD * self.seen * kept + 0.3 * torch.randn_like(x_BD)) * torch.bernoulli(
            torch.full_like(x_BD, 0.8)
        )
        h_BW = self.widen(x_BD).tanh() + torch.normal(0.1, 0.2, x_BD.shape[:1])[:, None]
        chosen = nn.functional.gumbel_softmax(h_BW, tau=2.0)
        return self.narrow(h_BW * chosen + torch.empty_like(h_BW).uniform_(-1, 3))


def model() -> nn.Module:
    return Noisy()
