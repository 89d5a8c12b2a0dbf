"""Samples with noise from torch, NumPy and Python; a loss with noise of each kind too."""

import random

import numpy as np
import torch
from torch import nn

settings = {"epochs": 2, "global_batch_size": 8}


class Noisy:
    fingerprint = "noisy"

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.stack(
            [
                torch.randn(()),
                torch.tensor(np.random.randn()).float(),
                torch.tensor(random.gauss(0, 1)),
                torch.tensor(float(index)),
            ]
        )


def model() -> nn.Module:
    return nn.Linear(4, 1)


def data() -> dict[str, Noisy]:
    return {"train": Noisy(29), "validation": Noisy(11)}


def loss(model, batch):
    shift = torch.randn(()) + np.random.randn() + random.gauss(0, 1)
    return (model(batch) - shift).square().mean()


def optimizer(params):
    return torch.optim.SGD(params, lr=1e-4)
