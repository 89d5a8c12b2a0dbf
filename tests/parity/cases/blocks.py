"""A causal transformer of repeated blocks with tied embeddings, a schedule and clipping."""

import numpy as np
import torch
from torch import nn

settings = {"epochs": 1, "global_batch_size": 16, "clip_norm": 0.5}
VOCABULARY, LENGTH, WIDTH = 11, 6, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        mask_TT = nn.Transformer.generate_square_subsequent_mask(x_BTD.shape[1], dtype=x_BTD.dtype)
        h_BTD = self.norm(x_BTD)
        x_BTD = (
            x_BTD + self.attention(h_BTD, h_BTD, h_BTD, attn_mask=mask_TT, need_weights=False)[0]
        )
        return x_BTD + self.down(nn.functional.gelu(self.up(self.norm2(x_BTD))))


class Writer(nn.Module):
    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.place = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(num_layers))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.embed(words_BT) + self.place[: words_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(x_BTD)


def model(num_layers: int = 3) -> nn.Module:
    return Writer(num_layers)


def data() -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, VOCABULARY, (70, LENGTH + 1), generator=generator)
    return {"train": list(words[:51]), "validation": list(words[51:])}


def loss(model, batch):
    logits_BTV = model(batch[:, :-1])
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch[:, 1:].flatten())


def optimizer(params):
    return torch.optim.AdamW(params, lr=1e-2)


def scheduler(optimizer, num_steps):
    """NumPy's numbers become learning rates: a checkpoint has to bear them."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + np.cos(np.pi * step / num_steps))
    )
