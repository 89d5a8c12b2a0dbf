"""An optimiser that must see whole matrices (Muon), beside AdamW for the vectors."""

import torch
import torch.nn.functional as F
from torch import nn

settings = {"epochs": 2, "global_batch_size": 8, "clip_norm": 0.5}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 14), nn.Linear(14, 6)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


def model():
    return nn.Sequential(Layer(), Layer(), nn.Linear(6, 4))


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(29, 6, generator=generator)
    rows = [{"x": a, "y": a.sin()[:4]} for a in x]
    return {"train": rows, "validation": rows[:6]}


def loss(model, batch):
    return F.mse_loss(model(batch["x"]), batch["y"])


def optimizer(params):
    return torch.optim.Muon([p for p in params if p.ndim == 2], lr=0.02)
