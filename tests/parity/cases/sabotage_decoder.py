"""The decoder of the recipe `gpt` at a size of milliseconds, over words that all occur."""

import torch
from torch import nn

from armillary.recipes import gpt

settings = {"epochs": 1, "global_batch_size": 16, "clip_norm": 0.5}
LENGTH, NUM_WORDS = 8, 64


def model(tied: bool = False) -> nn.Module:
    return gpt.model(
        num_layers=2, hidden_size=16, num_heads=4, num_kv_heads=2, vocab_size=NUM_WORDS, tied=tied
    )


def data() -> dict[str, list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, NUM_WORDS, (60, LENGTH + 1), generator=generator)
    rows = [{"tokens": line[:-1], "targets": line[1:]} for line in words]
    return {"train": rows[:50], "validation": rows[50:]}


loss, optimizer = gpt.loss, gpt.optimizer
