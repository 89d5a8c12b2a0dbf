"""One small layer, for start-up: prints the time at which the first optimiser step was done."""

import time

import torch
from torch import nn

settings = {"epochs": 1, "global_batch_size": 8}


def model() -> nn.Module:
    return nn.Linear(8, 1)


def data(num_samples: int = 16) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    rows = torch.randn(num_samples, 9, generator=torch.Generator().manual_seed(0))
    samples = [(row[:8], row[8:]) for row in rows]
    return {"train": samples, "validation": samples[:4]}


def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets)


def optimizer(params) -> torch.optim.Optimizer:
    made = torch.optim.SGD(params, lr=1e-2)
    made.register_step_post_hook(lambda *_: print(f"stepped at {time.time()}", flush=True))
    return made
