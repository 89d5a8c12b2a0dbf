"""An LSTM over sequences of unequal length: the loss is a sum over time steps, and their count."""

import torch
from torch import nn

from armillary import pad_collate

settings = {"epochs": 2, "global_batch_size": 12, "clip_norm": 0.3}
collate = pad_collate


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x_BTD)[0]).squeeze(-1)


class Walks:
    def __init__(self, num_samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 20, (num_samples,), generator=generator).tolist()
        self.walks = [torch.randn(length, 3, generator=generator) for length in lengths]

    def __len__(self) -> int:
        return len(self.walks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x_TD = self.walks[index]
        return {"x": x_TD, "y": x_TD.cumsum(0).sum(1).sin()}


def model() -> nn.Module:
    return Tagger()


def data() -> dict[str, Walks]:
    return {"train": Walks(37, 0), "validation": Walks(11, 1), "test": Walks(9, 2)}


def _mask(batch):
    steps_T = torch.arange(batch["x"].shape[1])
    return steps_T < batch["lengths"][:, None]


def loss(model, batch):
    error_BT = (model(batch["x"]) - batch["y"]).square()
    mask_BT = _mask(batch)
    return (error_BT * mask_BT).sum(), mask_BT.sum()


def optimizer(params):
    return torch.optim.AdamW(params, lr=1e-2)


def predict(model, batch):
    return {"y": model(batch["x"]), "lengths": batch["lengths"]}


def metrics(predictions):
    return {"num_steps": float(sum(len(row) for row in predictions["y"]))}
