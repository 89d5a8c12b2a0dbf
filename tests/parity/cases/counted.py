"""640 samples, each of which writes its index to a file of its process when it is read."""

import os
from pathlib import Path

import torch
from torch import nn

settings = {"epochs": 1, "global_batch_size": 64}


class Counted:
    fingerprint = "counted"

    def __init__(self, num_samples: int, log: str) -> None:
        self.num_samples, self.log = num_samples, log

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.log:
            with (Path(self.log) / str(os.getpid())).open("a") as file:
                file.write(f"{index}\n")
        return torch.full((2,), index / self.num_samples)


def model() -> nn.Module:
    return nn.Linear(2, 1)


def data(log: str = "") -> dict[str, Counted]:
    return {"train": Counted(640, log), "validation": Counted(4, "")}


def loss(model, batch):
    return (model(batch) - 1).square().mean()


def optimizer(params):
    return torch.optim.SGD(params, lr=0.1)
