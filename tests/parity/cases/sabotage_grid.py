"""The recipe `cnn` at a size of milliseconds, on small fields of random numbers."""

import torch
from torch import nn

from armillary.recipes import cnn

settings = {"epochs": 1, "global_batch_size": 16, "clip_norm": 0.5}


def model() -> nn.Module:
    return cnn.model(num_channels=4, num_blocks=2)


def data() -> dict[str, list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    grids = torch.randn(60, 4, 8, 8, generator=generator) + torch.arange(8.0)[:, None]
    rows = [{"now": grid[:3], "later": grid[3]} for grid in grids]
    return {"train": rows[:50], "validation": rows[50:]}


loss, optimizer = cnn.loss, cnn.optimizer
