"""The next byte of Python's own manual: a small decoder in today's usual form.

A norm before attention and feed-forward (RMSNorm: arXiv 1910.07467), positions by rotation (RoPE:
arXiv 2104.09864, eq. 34), groups of queries that share keys and values (arXiv 2305.13245), a gated
feed-forward (SwiGLU: arXiv 2002.05202, eq. 6). The rivals count: bytes alone (order 0), or each
byte after the two or four before it, in the training text.

Data: the language reference inside every CPython, which `help()` reads (`pydoc_data.topics`, Python
Software Foundation licence): 466 kB in 3.11, another text in other versions. A token is a byte.

Split by position: the first 80 % trains, the next 10 % validates, the last 10 % tests. Neighbouring
samples come from one passage, so intervals come from resampling blocks of 1,024 bytes.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from armillary.recipes.gpt.counts import NUM_BYTES, score_counts
from armillary.recipes.gpt.text import Text, language_reference
from armillary.spec import SpecError

# Shapes: B samples, T tokens, H hidden, N heads, D of a head, R rotated of it, V vocabulary
Columns = dict[str, np.ndarray]
settings = {"epochs": 6, "global_batch_size": 8, "clip_norm": 1.0}
monitor = "min:bits_per_byte"


def rotation(x_BTH: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [T, R] of the angle of every position, for the `size` = R of a head.

    Counted in float32 whatever the model's precision: bfloat16 has no 257.
    """
    position_T = torch.arange(x_BTH.shape[1], dtype=torch.float32, device=x_BTH.device)
    pair_R = torch.arange(0, size, 2, dtype=torch.float32, device=x_BTH.device).repeat(2)
    angle_TR = position_T[:, None] * 10_000.0 ** (-pair_R / size)
    return angle_TR.cos().to(x_BTH.dtype), angle_TR.sin().to(x_BTH.dtype)


def rotate(x_BNTR: torch.Tensor, cos_TR: torch.Tensor, sin_TR: torch.Tensor) -> torch.Tensor:
    """Each pair of entries i and i + R/2 turned by the angle of its position."""
    first, second = x_BNTR.chunk(2, dim=-1)
    return (x_BNTR * cos_TR + torch.cat([-second, first], dim=-1) * sin_TR).to(x_BNTR.dtype)


def by_head(x_BTF: torch.Tensor, size: int) -> torch.Tensor:
    """[B, N, T, size]: as many heads as there are features, which may be a part of the model's."""
    return x_BTF.unflatten(-1, (-1, size)).transpose(1, 2)


class Attention(nn.Module):
    """Causal attention in which groups of query heads share one head of keys and values."""

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.head_size = hidden_size // num_heads
        self.q = nn.Linear(hidden_size, num_heads * self.head_size, bias=False)
        self.k = nn.Linear(hidden_size, num_kv_heads * self.head_size, bias=False)
        self.v = nn.Linear(hidden_size, num_kv_heads * self.head_size, bias=False)
        self.o = nn.Linear(num_heads * self.head_size, hidden_size, bias=False)

    def forward(self, x_BTH: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q = rotate(by_head(self.q(x_BTH), self.head_size), cos, sin)
        k = rotate(by_head(self.k(x_BTH), self.head_size), cos, sin)
        v = by_head(self.v(x_BTH), self.head_size)
        mixed_BNTD = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(mixed_BNTD.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear maps, one gating the other, and a third back to the hidden size."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, inner_size, bias=False)
        self.up = nn.Linear(hidden_size, inner_size, bias=False)
        self.down = nn.Linear(inner_size, hidden_size, bias=False)

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x_BTH)) * self.up(x_BTH))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to what came in."""

    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden_size)
        self.attention = Attention(hidden_size, num_heads, num_kv_heads)
        self.feed_forward_norm = nn.RMSNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size, 3 * hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTH: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x_BTH = x_BTH + self.dropout(self.attention(self.attention_norm(x_BTH), cos, sin))
        return x_BTH + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTH)))


class Decoder(nn.Module):
    """Logits [B, T, V] of the token after each token [B, T]."""

    def __init__(
        self, blocks: Iterable[nn.Module], hidden_size: int, vocab_size: int, rotary_size: int
    ) -> None:
        super().__init__()
        self.rotary_size = rotary_size
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        x_BTH = self.embedding(tokens_BT)
        cos, sin = rotation(x_BTH, self.rotary_size)
        for block in self.blocks:
            x_BTH = block(x_BTH, cos, sin)
        return self.head(self.norm(x_BTH))


def model(
    num_layers: int = 4,
    hidden_size: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    vocab_size: int = NUM_BYTES,
    tied: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    check_heads(hidden_size, num_heads, num_kv_heads)
    blocks = [Block(hidden_size, num_heads, num_kv_heads, dropout) for _ in range(num_layers)]
    decoder = Decoder(blocks, hidden_size, vocab_size, hidden_size // num_heads)
    if tied:
        decoder.embedding.weight = decoder.head.weight
    return decoder


def check_heads(hidden_size: int, num_heads: int, num_kv_heads: int) -> None:
    """Raises: `SpecError` unless heads are of one even size and groups of one number."""
    if hidden_size % (2 * num_heads) or num_heads % num_kv_heads:
        found = f"hidden_size {hidden_size}, {num_heads} heads, {num_kv_heads} of keys and values"
        rule = "num_kv_heads divides num_heads, and 2 x num_heads divides hidden_size"
        raise SpecError("recipe.num_heads", found, rule, "for example 64, 4 and 2")


def tiny() -> nn.Module:
    """The same structure at the smallest size that keeps it."""
    return model(num_layers=4, hidden_size=32, num_heads=4, num_kv_heads=2)


def data(sequence_length: int = 128) -> dict[str, Text]:
    text_L = language_reference()
    parts = np.split(text_L, [len(text_L) * 8 // 10, len(text_L) * 9 // 10])
    names = ("train", "validation", "test")
    return {name: Text(part, sequence_length) for name, part in zip(names, parts, strict=True)}


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits_BTV = model(batch["tokens"])
    return F.cross_entropy(logits_BTV.flatten(0, 1), batch["targets"].flatten())


def optimizer(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=5e-3, betas=(0.9, 0.95), weight_decay=0.1)


def scheduler(optimizer: torch.optim.Optimizer, num_steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, 5e-3, num_steps, pct_start=0.1, cycle_momentum=False)


def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return score(model(batch["tokens"]), batch)


def score(logits_BTV: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean bits for a byte and share of bytes foreseen, one of each for every sample [B]."""
    nats_BT = F.cross_entropy(logits_BTV.transpose(1, 2), batch["targets"], reduction="none")
    bits_B = nats_BT.mean(1) / np.log(2)
    accuracy_B = (logits_BTV.argmax(-1) == batch["targets"]).float().mean(1)
    return {"bits": bits_B, "accuracy": accuracy_B, "position": batch["position"]}


def metrics(predictions: Columns) -> dict[str, float]:
    return {
        "bits_per_byte": float(predictions["bits"].mean()),
        "next_byte_accuracy": float(predictions["accuracy"].mean()),
    }


def groups(predictions: Columns) -> np.ndarray:
    return predictions["position"] // 1024


def rivals(data: dict[str, Text]) -> dict[str, Columns]:
    orders = (0, 2, 4)  # no order of this text does better than 4
    return {f"order {n}": score_counts(n, data["train"], data["test"]) for n in orders}
