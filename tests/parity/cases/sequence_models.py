"""Modules as a scientist writes them, each with another way to use the place of a position."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, LENGTH, SAMPLES = 16, 8, 3


class Layer(nn.Module):
    """One projection for queries, keys and values; the number of heads stands in the views."""

    def __init__(self, is_causal: bool) -> None:
        super().__init__()
        self.ln_a, self.ln_b = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.is_causal = is_causal

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.ln_a(x)).view(b, t, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.is_causal)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.fc2(F.gelu(self.fc1(self.ln_b(x))))


class Learned(nn.Module):
    """Words, learned positions, causal layers, tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pos = nn.Embedding(11, WIDTH), nn.Parameter(torch.randn(12, WIDTH) * 0.1)
        self.blocks = nn.ModuleList(Layer(is_causal=True) for _ in range(2))
        self.head = nn.Linear(WIDTH, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words) + self.pos[: words.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Signals(nn.Module):
    """A sinusoid buffer, steps that do not count, a condition, and the mean over those that do."""

    def __init__(self) -> None:
        super().__init__()
        place = torch.arange(12)[:, None] / 10 ** torch.linspace(0, 2, WIDTH // 2)
        self.register_buffer("place", torch.cat([place.sin(), place.cos()], 1))
        self.enter, self.condition = nn.Linear(5, WIDTH), nn.Linear(7, WIDTH)
        self.blocks = nn.ModuleList(Layer(is_causal=False) for _ in range(2))
        self.out = nn.Linear(WIDTH, 1)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        valid = torch.arange(x.shape[1])[None] < lengths[:, None]
        h = self.enter(x) + self.place[: x.shape[1]] + self.condition(condition)[:, None]
        for block in self.blocks:
            h = block(h, valid[:, None, None])
        weight = valid[..., None].to(h.dtype)
        return self.out((h * weight).sum(1) / weight.sum(1))[:, 0]


class Biased(nn.Module):
    """A learned bias by distance and head, and attention to a context of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4, 2 * LENGTH))
        self.layer = Layer(is_causal=False)
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(5, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        place = torch.arange(x.shape[1])
        x = self.layer(x, self.bias[:, place[:, None] - place[None] + LENGTH])
        q = self.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, 4, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        return self.out(x + y.transpose(1, 2).flatten(2)).amax((1, 2))


class Torchs(nn.Module):
    """torch's own encoder with a mask of all positions by all, made inside."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.out(self.encoder(x, mask=mask))


class Patches(nn.Module):
    """An image whose patches become positions inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.pos = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.randn(8, WIDTH))
        self.blocks = nn.ModuleList(Layer(is_causal=False) for _ in range(2))
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.cut(image).flatten(2).transpose(1, 2) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean(1))


class Grid(nn.Module):
    """Every kind of layer that looks at neighbours, on a grid with edges."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.wide = nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=2, padding_mode="reflect")
        self.norm, self.down = nn.GroupNorm(2, 8), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.edge = nn.Conv2d(12, 12, (3, 1), padding=(1, 0), padding_mode="replicate", bias=False)
        self.pool, self.up = nn.AvgPool2d((1, 2)), nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.shut = nn.Conv2d(8, 8, 1, stride=1)
        self.mean, self.out = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.norm(self.wide(x))
        x = self.pool(self.edge(torch.tanh(self.down(x))))
        x = F.interpolate(self.up(x), scale_factor=2)
        return self.out(self.mean(self.shut(x)).flatten(1))


class Ring(nn.Module):
    """A grid without edges."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
        self.down = nn.Conv2d(8, 8, 5, stride=2, padding=2, padding_mode="circular")
        self.norm, self.out = nn.GroupNorm(2, 8), nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.norm(self.down(self.stem(x)))))


class Series(nn.Module):
    """Features last; a convolution along the steps before attention among them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, WIDTH, 3, padding=1, padding_mode="circular")
        self.layer, self.thin = Layer(is_causal=True), nn.Conv1d(WIDTH, 4, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.thin(x.transpose(1, 2)).transpose(1, 2)


def squared(model: nn.Module, batch: Any) -> torch.Tensor:
    """The mean square of what the model makes of the batch's tensors, less a target."""
    *inputs, target = batch
    return (model(*inputs) - target).square().mean()


def foretold(model: nn.Module, batch: Any) -> torch.Tensor:
    words, targets = batch
    return F.cross_entropy(model(words).flatten(0, 1), targets.flatten())


Case = tuple[nn.Module, Any, Callable[[nn.Module, Any], torch.Tensor]]


def case(name: str) -> Case:
    """A model in float64, a batch, and its loss."""
    torch.manual_seed(1)
    kind = {
        "learned": Learned,
        "signals": Signals,
        "biased": Biased,
        "torchs": Torchs,
        "patches": Patches,
        "grid": Grid,
        "series": Series,
        "ring": Ring,
    }[name]
    model, draw = kind().double(), lambda *shape: torch.randn(SAMPLES + 1, *shape).double()
    words = torch.randint(0, 11, (2, SAMPLES + 1, LENGTH))
    batches = {
        "learned": tuple(words),
        "signals": (draw(LENGTH, 5), torch.tensor([8, 3, 5, 1]), draw(7), draw()),
        "biased": (draw(LENGTH, WIDTH), draw(6, 5), draw()),
        "torchs": (draw(LENGTH, WIDTH), draw(LENGTH, 3)),
        "patches": (draw(3, 16, 8), draw(2)),
        "grid": (draw(3, 16, 8), draw(2)),
        "ring": (draw(3, 16, 8), draw(1, 8, 4)),
        "series": (draw(LENGTH, 5), draw(LENGTH // 2, 4)),
    }
    return model, batches[name], foretold if name == "learned" else squared
