"""The decoder of the recipe gpt with dropout, on a few short texts."""

import torch

from armillary.recipes import gpt
from armillary.recipes.gpt import loss  # noqa: F401

settings = {"epochs": 1, "global_batch_size": 4, "shuffle": False, "clip_norm": 0.5}


def model():
    return gpt.model(num_layers=2, hidden_size=16, num_heads=4, num_kv_heads=2, dropout=0.4)


def data():
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(0, 256, (10, 17), generator=generator)
    rows = [{"tokens": text[:-1], "targets": text[1:]} for text in texts]
    return {"train": rows, "validation": rows[:2]}


def optimizer(params):
    return torch.optim.SGD(params, lr=0.1)
