"""A GPT of 4 layers x 256 on synthetic tokens. B = batch, T = time, H = heads, D = width."""

import torch
from torch import nn
from torch.utils.data import Dataset

settings = {"epochs": 1, "global_batch_size": 8}

VOCABULARY_SIZE, NUM_LAYERS, NUM_HEADS, WIDTH, CONTEXT = 256, 4, 4, 256, 64


class Tokens(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Noisy arithmetic sequences: tokens and, one place on, what follows them."""

    fingerprint = "benchmarks.gpt"

    def __init__(self, num_samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randint(VOCABULARY_SIZE, (num_samples, 1), generator=generator)
        stride = torch.randint(1, 4, (num_samples, 1), generator=generator)
        noise = torch.rand(num_samples, CONTEXT + 1, generator=generator) < 0.05
        tokens_BT = start + stride * torch.arange(CONTEXT + 1) + 17 * noise
        self.tokens_BT = tokens_BT % VOCABULARY_SIZE

    def __len__(self) -> int:
        return len(self.tokens_BT)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.tokens_BT[index]
        return row[:-1], row[1:]


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and beside a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.forward_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.project_in, self.project_out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.forward_layers = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        projected = self.project_in(self.attention_norm(hidden_BTD))
        query_BHTD, key_BHTD, value_BHTD = (
            part.unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for part in projected.chunk(3, dim=-1)
        )
        mixed_BHTD = nn.functional.scaled_dot_product_attention(
            query_BHTD, key_BHTD, value_BHTD, is_causal=True
        )
        hidden_BTD = hidden_BTD + self.project_out(mixed_BHTD.transpose(1, 2).flatten(-2))
        return hidden_BTD + self.forward_layers(self.forward_norm(hidden_BTD))


class GPT(nn.Module):
    """Logits [batch, time, vocabulary] of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY_SIZE, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(NUM_LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY_SIZE, bias=False)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        hidden_BTD = self.tokens(tokens_BT) + self.positions(places)
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD)
        return self.head(self.norm(hidden_BTD))


def model() -> nn.Module:
    return GPT()


def data(num_samples: int = 4096) -> dict[str, Dataset]:
    return {"train": Tokens(num_samples, 0), "validation": Tokens(8, 1)}


def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    tokens_BT, targets_BT = batch
    return nn.functional.cross_entropy(model(tokens_BT).flatten(0, 1), targets_BT.flatten())


def optimizer(params) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=3e-4)
