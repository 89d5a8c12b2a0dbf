"""Padded series through blocks that take a mask, positions and a learned bias besides."""

import torch
from torch import nn

from armillary import pad_collate

settings = {"epochs": 1, "global_batch_size": 12, "clip_norm": 0.2}
collate = pad_collate
WIDTH, HEADS = 8, 2


class Mixer(nn.Module):
    """A fused projection of queries, keys and values, with the heads counted in the view."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.back = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))
        self.drop = nn.Dropout(dropout)

    def forward(self, mask_BT, x_BTD, *, turn_TD, bias_TT):  # type: ignore[no-untyped-def]
        num_samples, length, _ = x_BTD.shape
        qkv = self.qkv(self.before(x_BTD) * turn_TD).view(num_samples, length, 3, HEADS, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        hidden = torch.zeros_like(bias_TT).masked_fill(~mask_BT[:, None, None, :], -1e9)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias_TT + hidden)
        x_BTD = x_BTD + self.drop(self.back(mixed.transpose(1, 2).flatten(2)))
        return x_BTD + self.wide(self.after(x_BTD))


class Series(nn.Module):
    def __init__(self, num_layers: int, dropout: float, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.inlet = nn.Linear(3, WIDTH)
        self.first_step = nn.Parameter(torch.randn(WIDTH) * 0.1)
        self.distance = nn.Embedding(16, 1)
        self.stack = nn.ModuleList(Mixer(dropout) for _ in range(num_layers))
        self.outlet = nn.Linear(WIDTH, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, batch):  # type: ignore[no-untyped-def]
        x_BTD = self.inlet(batch["x"])
        length = x_BTD.shape[1]
        if length > 64:
            raise ValueError("too long")
        steps_T = torch.arange(length, device=x_BTD.device)
        mask_BT = steps_T < batch["lengths"][:, None]
        turn_TD = torch.cos(steps_T[:, None] * torch.linspace(0, 1, WIDTH)).type_as(x_BTD)
        apart_TT = (steps_T[:, None] - steps_T).abs().clamp(max=15)
        bias_TT = self.distance(apart_TT).squeeze(-1)  # crosses every cut, with a gradient
        is_first_T = (steps_T == 0).to(x_BTD)
        x_BTD = x_BTD + is_first_T[:, None] * self.first_step
        for block in self.stack:
            x_BTD = block(mask_BT, x_BTD, turn_TD=turn_TD, bias_TT=bias_TT)
        return {"y": (self.outlet(x_BTD) * self.scale).squeeze(-1), "mask": mask_BT}


class Walks:
    def __init__(self, num_samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 9, (num_samples,), generator=generator).tolist()
        self.walks = [torch.randn(length, 3, generator=generator) for length in lengths]

    def __len__(self) -> int:
        return len(self.walks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x_TD = self.walks[index]
        return {"x": x_TD, "y": x_TD.cumsum(0).sum(1).sin()}


def model(num_layers: int = 4, dropout: float = 0.0, noise: float = 0.0) -> nn.Module:
    return Series(num_layers, dropout, noise)


def data() -> dict[str, Walks]:
    return {"train": Walks(29, 0), "validation": Walks(7, 1), "test": Walks(5, 2)}


def loss(model, batch):  # type: ignore[no-untyped-def]
    noise_BTD = model.noise * torch.randn_like(batch["x"])
    found = model({"x": batch["x"] + noise_BTD, "lengths": batch["lengths"]})
    error_BT = (found["y"] - batch["y"]).square() * found["mask"]
    return error_BT.sum(), found["mask"].sum()


def optimizer(params):  # type: ignore[no-untyped-def]
    return torch.optim.AdamW(params, lr=1e-2)


def predict(model, batch):  # type: ignore[no-untyped-def]
    return {"y": model(batch)["y"], "lengths": batch["lengths"]}


def metrics(predictions):  # type: ignore[no-untyped-def]
    return {"num_steps": float(sum(len(row) for row in predictions["y"]))}
