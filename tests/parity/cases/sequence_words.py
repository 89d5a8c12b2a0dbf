"""Words foretold by causal layers with learned positions, clipped, in a scheduled epoch."""

import torch
from torch import nn

from tests.parity.cases.sequence_models import LENGTH, Learned, foretold

settings = {"epochs": 1, "global_batch_size": 16, "clip_norm": 0.3}


def model() -> nn.Module:
    return Learned()


def data() -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 11, (42, LENGTH + 1), generator=generator)
    samples = [(row[:-1], row[1:]) for row in words]
    return {"train": samples[:34], "validation": samples[34:]}


loss = foretold


def optimizer(params):
    return torch.optim.AdamW(params, lr=1e-2)
