"""An LSTM of 2 x 200 on 128 steps of 16 signals, like the fusion recipe's. B = batch, T = time."""

import torch
from torch import nn
from torch.utils.data import Dataset

settings = {"epochs": 1, "global_batch_size": 32}

NUM_SIGNALS, NUM_STEPS, HIDDEN_SIZE, NUM_LAYERS = 16, 128, 200, 2


class Signals(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random walks, and at each time whether two of them lie apart."""

    fingerprint = "benchmarks.lstm"

    def __init__(self, num_samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(num_samples, NUM_STEPS, NUM_SIGNALS, generator=generator)
        self.signals_BTS = noise.cumsum(1) / NUM_STEPS**0.5
        self.labels_BT = (self.signals_BTS[..., 0] > self.signals_BTS[..., 1] + 0.5).float()

    def __len__(self) -> int:
        return len(self.signals_BTS)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.signals_BTS[index], self.labels_BT[index]


class Recurrent(nn.Module):
    """Logits [batch, time] of an alarm."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(NUM_SIGNALS, HIDDEN_SIZE, NUM_LAYERS, batch_first=True)
        self.head = nn.Linear(HIDDEN_SIZE, 1)

    def forward(self, signals_BTS: torch.Tensor) -> torch.Tensor:
        hidden_BTD, _ = self.lstm(signals_BTS)
        return self.head(hidden_BTD).squeeze(-1)


def model() -> nn.Module:
    return Recurrent()


def data(num_samples: int = 4096) -> dict[str, Dataset]:
    return {"train": Signals(num_samples, 0), "validation": Signals(32, 1)}


def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    signals_BTS, labels_BT = batch
    return nn.functional.binary_cross_entropy_with_logits(model(signals_BTS), labels_BT)


def optimizer(params) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3)
