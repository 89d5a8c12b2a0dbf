"""Well-known nets written plainly, whose published sizes `models.trace` must find."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride: v1.5), 1x1, and what came in, mapped where shapes differ."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, width, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.third = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.third_norm = nn.BatchNorm2d(4 * width)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or inner != 4 * width:
            short = nn.Conv2d(inner, 4 * width, 1, stride, bias=False)
            self.short = nn.Sequential(short, nn.BatchNorm2d(4 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.first_norm(self.first(x)), inplace=True)
        y = F.relu(self.second_norm(self.second(y)), inplace=True)
        return F.relu(self.third_norm(self.third(y)) + self.short(x), inplace=True)


class ResNet50(nn.Module):
    """He et al. 2015, arXiv 1512.03385, table 1; v1.5 of torchvision: 25,557,032 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(64)
        stages, inner = [], 64
        for place, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(inner, width, 2 if block == 0 and place else 1))
                inner = 4 * width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inner, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x)), inplace=True), 3, 2, 1)
        return self.head(self.stages(x).mean((2, 3)))


class UNet(nn.Module):
    """Down by pooling, up by transposed convolutions, with what is kept joined on the way."""

    def __init__(self, width: int = 8, depth: int = 3) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip([1, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.join = nn.ModuleList(nn.Conv2d(2 * a, a, 3, padding=1) for a in widths[:-1])
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for place, layer in enumerate(self.down):
            x = F.relu(layer(F.max_pool2d(x, 2) if place else x))
            kept.append(x)
        for place in reversed(range(len(self.up))):
            x = torch.cat([self.up[place](x), kept[place]], 1)
            x = F.relu(self.join[place](x))
        return self.last(x)


class Words(nn.Module):
    """An LSTM of two layers over vectors, and a map of its last state."""

    def __init__(self, inner: int = 16, hidden: int = 32, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.steps = kind(inner, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x_BTF: torch.Tensor) -> torch.Tensor:
        return self.head(self.steps(x_BTF)[0][:, -1])
