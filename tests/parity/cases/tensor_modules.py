"""Modules as scientists write them, each with a call: what the tensor axis has to split, or not."""

# Shapes: B samples, T tokens, H hidden, N heads, D of a head, F features, C channels, V words
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

H, N, D, V, T = 16, 4, 4, 24, 6


class Perceptron(nn.Module):
    """Two maps with a norm before and biases; only the pair is split."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(5), nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        return self.second(F.gelu(self.first(self.norm(x_BF))))


class Attention(nn.Module):
    """Attention written with separate or fused projections, and head counts in its views."""

    def __init__(self, fused: str = "", num_kv: int = N, bias: bool = True) -> None:
        super().__init__()
        self.fused, self.num_kv = fused, num_kv
        if fused:
            self.qkv = nn.Linear(H, (N + 2 * num_kv) * D, bias=bias)
        else:
            self.q, self.k, self.v = (nn.Linear(H, n * D, bias=bias) for n in (N, num_kv, num_kv))
        self.out = nn.Linear(N * D, H, bias=bias)

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        b, t, _ = x_BTH.shape
        if self.fused == "view":
            q, k, v = self.qkv(x_BTH).view(b, t, 3, 4, 4).permute(2, 0, 3, 1, 4)
        elif self.fused == "heads":  # each head's queries, keys and values lie together
            q, k, v = self.qkv(x_BTH).view(b, t, 4, 12).transpose(1, 2).chunk(3, dim=-1)
        else:
            if self.fused == "split":
                parts = self.qkv(x_BTH).split([N * D, self.num_kv * D, self.num_kv * D], dim=-1)
            elif self.fused == "chunk":
                parts = self.qkv(x_BTH).chunk(3, dim=2)
            else:
                parts = self.q(x_BTH), self.k(x_BTH), self.v(x_BTH)
            q, k, v = (part.view(b, t, -1, 4).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.num_kv != N)
        return self.out(mixed.transpose(1, 2).reshape(b, t, H))


class Gated(nn.Module):
    """SwiGLU, its two columns apart or in one matrix."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused
        if fused:
            self.both = nn.Linear(H, 2 * 12)
        else:
            self.gate, self.up = nn.Linear(H, 12, bias=False), nn.Linear(H, 12, bias=False)
        self.down = nn.Linear(12, H, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(x).chunk(2, -1) if self.fused else (self.gate(x), self.up(x))
        return self.down(F.silu(gate) * up)


class ByHand(nn.Module):
    """Attention without torch's function, norms of queries and keys, a scale of each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(H, H) for _ in range(3))
        self.q_norm, self.k_norm = nn.RMSNorm(D), nn.LayerNorm(D)
        self.scale = nn.Parameter(torch.randn(H))
        self.out = nn.Linear(H, H)

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        q, k, v = (m(x_BTH).unflatten(-1, (N, D)).transpose(1, 2) for m in (self.q, self.k, self.v))
        scores = self.q_norm(q) @ self.k_norm(k).transpose(-1, -2)
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2) * self.scale)


class Layer(nn.Module):
    def __init__(self, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(H), attention
        self.feed_forward_norm, self.feed_forward = nn.RMSNorm(H), feed_forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Writer(nn.Module):
    """Words in, logits out; head and embedding are one matrix where tied."""

    def __init__(self, layers: list[nn.Module], tied: bool = False, num_words: int = V) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_words, H, padding_idx=0)
        self.place = nn.Parameter(torch.randn(T, H))
        self.layers = nn.ModuleList(layers)
        self.norm, self.head = nn.LayerNorm(H), nn.Linear(H, num_words, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, words_BT: torch.Tensor) -> torch.Tensor:
        x_BTH = self.embed(words_BT) + self.place[: words_BT.shape[1]]
        for layer in self.layers:
            x_BTH = layer(x_BTH)
        return self.head(self.norm(x_BTH))


class Again(nn.Module):
    """One pair used twice in a call, on different tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.pair = nn.Linear(5, H), Gated()

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        x_BH = self.enter(x_BF).tanh()
        return self.pair(x_BH + self.pair(x_BH))


class Field(nn.Module):
    """Convolutions in pairs with a norm by groups between them, pooling and upsampling around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, padding_mode="circular")
        self.wide = nn.Conv2d(8, 16, 3, padding=1, padding_mode="circular")
        self.norm = nn.GroupNorm(4, 16)
        self.back = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        x_BCYX = self.stem(x_BCYX)
        low = F.avg_pool2d(x_BCYX, 2)
        low = low + self.back(F.silu(self.norm(self.wide(low))))
        high = F.interpolate(low, scale_factor=2, mode="bilinear")
        return self.head(torch.cat([high, x_BCYX], dim=1))


class Memory(nn.Module):
    """A recurrent net, which runs whole, before a pair that is split."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.memory, self.pair = kind(5, H, batch_first=True), Gated()

    def forward(self, x_BTF: torch.Tensor) -> torch.Tensor:
        return self.pair(self.memory(x_BTF)[0])


def torch_layer(dropout: float = 0.0) -> nn.Module:
    """torch's own encoder layer: a packed projection without a module of its own."""
    return nn.TransformerEncoderLayer(H, N, 2 * H, dropout=dropout, batch_first=True)


def words() -> torch.Tensor:
    return torch.randint(0, V, (4, T), generator=torch.Generator().manual_seed(1))


def numbers(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def named() -> nn.Module:
    """Splits as a recipe names them: what would not be found is right all the same."""
    from armillary.models.named_splits import name_splits

    model = Writer([Layer(Attention("chunk"), Gated()) for _ in range(2)])
    styles = {"layers.0.attention.*": "replicate", "layers.*.feed_forward.down": "colwise"}
    name_splits(model, styles | {"layers.1.attention.out": "rowwise"})
    return model


class Dropping(nn.Module):
    """Dropout of what is whole, and of what is cut within a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 16), nn.Linear(16, 5), nn.Linear(5, 1)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        x_BF = self.second(F.dropout(self.first(x_BF).relu(), 0.5, self.training))
        return self.last(F.dropout(x_BF, 0.25, self.training))


Case = tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]


def layers(attention: Callable[[], nn.Module], tied: bool = False) -> Callable[[], nn.Module]:
    return lambda: Writer([Layer(attention(), Gated()) for _ in range(2)], tied)


CASES: dict[str, Case] = {
    "perceptron": (Perceptron, lambda: numbers(4, 5)),
    "separate": (layers(Attention), words),
    "tied": (layers(Attention, tied=True), words),
    "chunk": (layers(lambda: Attention("chunk")), words),
    "view": (layers(lambda: Attention("view", bias=False)), words),
    "heads": (layers(lambda: Attention("heads")), words),
    "grouped": (layers(lambda: Attention(num_kv=2)), words),
    "grouped split": (layers(lambda: Attention("split", num_kv=2)), words),
    "by hand": (layers(ByHand), words),
    "fused gate": (lambda: Writer([Layer(Attention(), Gated(fused=True))]), words),
    "odd words": (lambda: Writer([Layer(Attention(), Gated())], num_words=V + 1), words),
    "torch layer": (lambda: Writer([torch_layer(), torch_layer()]), words),
    "again": (Again, lambda: numbers(4, 5)),
    "field": (Field, lambda: numbers(4, 2, 8, 8)),
    "lstm": (lambda: Memory(nn.LSTM), lambda: numbers(4, T, 5)),
    "dropout": (Dropping, lambda: numbers(8, 5)),
    "dropout layer": (
        lambda: Writer([Layer(Attention(), nn.Sequential(Gated(), nn.Dropout(0.3)))]),
        words,
    ),
    "gru": (lambda: Memory(nn.GRU), lambda: numbers(4, T, 5)),
}
"""By name: how the model is made, and what it is called with."""


def loss_of(output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A mean over samples: cross entropy where words come in, otherwise squares."""
    if x.is_floating_point():
        return (output - 0.3).square().mean()
    losses = F.cross_entropy(output.flatten(0, 1), x.flatten(), ignore_index=1, reduction="sum")
    return losses / x.numel()
