"""A wide and deep model without `tiny()`: two kinds of blocks, heads that divide the width."""

import torch
from torch import nn

settings = {"epochs": 1, "global_batch_size": 8, "clip_norm": 1.0}
LENGTH, NUM_INPUTS = 5, 3


class Block(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, num_heads, 0.2, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, 1)
        )

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        h_BTH = self.norm(x_BTH)
        x_BTH = x_BTH + self.attention(h_BTH, h_BTH, h_BTH, need_weights=False)[0]
        return x_BTH + self.feed_forward(x_BTH)


class Wide(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.stem = nn.Linear(NUM_INPUTS, hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(num_layers))
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x_BTI: torch.Tensor) -> torch.Tensor:
        x_BTH = self.stem(x_BTI)
        for block in self.blocks:
            x_BTH = block(x_BTH)
        return self.head(x_BTH)


def model(hidden_size: int = 256, num_heads: int = 8, num_layers: int = 8, tanh: bool = False):
    return Wide(hidden_size, num_heads, num_layers)


def data(num_samples: int = 40) -> dict[str, list[torch.Tensor]]:
    x_RTI = torch.randn(num_samples, LENGTH, NUM_INPUTS, generator=torch.Generator().manual_seed(0))
    return {"train": list(x_RTI), "validation": list(x_RTI[:4])}


def loss(model, batch):
    return (model(batch) - batch.sum(-1, keepdim=True)).square().mean()


def optimizer(params):
    return torch.optim.AdamW(params, lr=1e-3)
