"""A model called twice in a step, with an inner module that each call uses twice."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

settings = {"epochs": 1, "global_batch_size": 16}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        return x_BD + self.linear(x_BD).tanh()


class Echo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        for layer in [*self.layers, *self.layers]:
            x_BD = layer(x_BD)
        return x_BD


def model() -> nn.Module:
    return Echo()


def data() -> dict[str, TensorDataset]:
    generator = torch.Generator().manual_seed(0)
    x_BD = torch.randn(49, 6, generator=generator)
    return {"train": TensorDataset(x_BD[:37]), "validation": TensorDataset(x_BD[37:])}


def loss(model, batch):
    (x_BD,) = batch
    return (model(x_BD) + model(-x_BD) - x_BD.square()).square().mean()


def optimizer(params):
    return torch.optim.SGD(params, lr=1e-2, momentum=0.9)
