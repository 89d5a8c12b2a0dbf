"""A small run into which trouble comes while the file `flag` exists."""

import os
import time
from pathlib import Path

import torch
from torch import nn

settings = {"epochs": 3, "global_batch_size": 8, "checkpoint_every_steps": 2}
NUM_STEPS = 24
HIDDEN_INDEX = 37  # the sample that trouble comes with


class Samples:
    fingerprint = "samples"

    def __init__(self, num_samples: int, trouble: str, flag: str) -> None:
        self.num_samples, self.trouble, self.flag = num_samples, trouble, flag
        self.num_met = 0

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        sample = torch.randn(4)
        if self.trouble == "slow" and os.environ.get("RANK") == "1":
            time.sleep(0.002)
        if index == HIDDEN_INDEX and self.trouble and Path(self.flag).exists():
            if self.trouble == "nan":
                return sample * float("nan")
            if self.trouble == "ragged":
                return torch.randn(5)
            if self.trouble == "hang":
                Path(self.flag).unlink()
                time.sleep(3600)
            if self.trouble == "spike":
                self.num_met += 1
                return sample * (1e3 if self.num_met > 2 else 1.0)
            if self.trouble == "broken":
                raise OSError(f"sample {index} cannot be read")
        return sample


def model(width: int = 8, dropout: float = 0.2) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.Dropout(dropout), nn.Linear(width, 1))


def data(trouble: str = "", flag: str = "", pause_s: float = 0.0) -> dict[str, Samples]:
    os.environ["TEST_PAUSE_S"] = str(pause_s)
    return {"train": Samples(64, trouble, flag), "validation": Samples(8, "", "")}


def loss(model, batch):
    time.sleep(float(os.environ["TEST_PAUSE_S"]))
    return (model(batch) - batch.sum(1, keepdim=True)).square().mean()


def optimizer(params):
    return torch.optim.AdamW(params, lr=1e-2)
