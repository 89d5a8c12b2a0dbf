"""Convolutions and batch norm on small maps: with weights, without, and of vectors."""

import torch
from torch import nn

settings = {"epochs": 1, "global_batch_size": 8, "clip_norm": 0.4}


class Maps(nn.Module):
    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4, momentum=momentum)
        self.untracked = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
        self.head, self.head_norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        x_BCYX = self.norm(self.first(x_BCYX)).relu()
        x_BC = self.untracked(self.second(x_BCYX)).relu().mean((2, 3))
        return self.head_norm(self.head(x_BC))


def model(momentum: float = 0.3) -> nn.Module:
    return Maps(momentum or None)


def data() -> dict[str, list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(41, 2, 6, 6, generator=generator) * 2 + 5
    truth = maps.mean((2, 3)) @ torch.randn(2, 3, generator=generator)
    rows = [{"map": x, "truth": y} for x, y in zip(maps, truth, strict=True)]
    return {"train": rows[:27], "validation": rows[27:]}


def loss(model, batch):
    return (model(batch["map"]) - batch["truth"]).square().mean()


def optimizer(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)
