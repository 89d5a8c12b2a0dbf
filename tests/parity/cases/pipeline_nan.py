"""Blocks whose last stage alone meets a number that is not finite, in the third step."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

settings = {"epochs": 1, "global_batch_size": 8, "clip_norm": 1.0}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        return x_BD + self.linear(x_BD).tanh()


def model() -> nn.Module:
    return nn.Sequential(Layer(), Layer(), Layer())


def data() -> dict[str, TensorDataset]:
    generator = torch.Generator().manual_seed(0)
    x_BD = torch.randn(40, 4, generator=generator)
    y_BD = x_BD.flip(1).clone()
    y_BD[20] = torch.nan
    whole = TensorDataset(x_BD, y_BD)
    return {"train": whole, "validation": TensorDataset(x_BD[:8], y_BD[:8])}


def loss(model, batch):  # type: ignore[no-untyped-def]
    x_BD, y_BD = batch
    return (model(x_BD) - y_BD).square().mean()


def optimizer(params):  # type: ignore[no-untyped-def]
    return torch.optim.SGD(params, lr=1e-2)
