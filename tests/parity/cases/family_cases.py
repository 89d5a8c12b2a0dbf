"""Families in words, and the torch module that each stands for."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from armillary.recipes import gpt, moe
from tests.parity.cases import family_modules as modules

TOKENS, SAMPLES = 16, 2
SMALL = {"layers": 2, "hidden": 64, "heads": 4, "seq": TOKENS, "vocab": 512}
OF_EXPERTS = {"experts": 8, "chosen": 2, "expert_ffn": 32, "ffn": 96, "shared": 2}
OF_HEADS = {"latent": 32, "q_latent": 48, "rotary": 8, "head_dim": 16, "value_dim": 16}
DEEP = SMALL | {"layers": 3, "dense": 1, "vocab": 256} | OF_EXPERTS | OF_HEADS
LLAMA = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "seq": TOKENS, "vocab": 256}
ROUTED = {**LLAMA, "experts": 8, "chosen": 2, "expert_ffn": 64, "shared": 64}
Case = tuple[str, dict[str, Any], Callable[[], nn.Module]]


def _case(name: str, build: Callable[..., nn.Module], **sizes: Any) -> Case:
    return name, sizes, lambda: build(**sizes)


CASES: dict[str, Case] = {
    "gpt": _case("gpt", modules.Gpt, **SMALL, dropout=0.1),
    "gpt, grouped, a head of its own": _case("gpt", modules.Gpt, **SMALL, kv_heads=2, tied=False),
    "gpt, written out": _case("gpt", modules.Gpt, **SMALL, fused=False, bias=False, dropout=0.1),
    "bert": _case("bert", modules.Bert, **SMALL, dropout=0.1),
    "deepseek": _case("deepseek", modules.deepseek, **DEEP),
    "llama": ("llama", {**LLAMA, "ffn": 192}, lambda: gpt.model(num_layers=2)),
    "llama, tied": (
        "llama",
        {**LLAMA, "ffn": 192, "tied": True, "dropout": 0.2},
        lambda: gpt.model(num_layers=2, tied=True, dropout=0.2),
    ),
    "moe": ("moe", ROUTED, lambda: moe.model(num_layers=2)),
    "moe, balanced by loss": (
        "moe",
        {**ROUTED, "biased": False},
        lambda: moe.model(num_layers=2, balance="loss"),
    ),
}


def words(name: str, sizes: dict[str, Any]) -> str:
    """A family as a person writes it."""
    return f"{name}:{','.join(f'{key}={value}' for key, value in sizes.items())}"


def batch(num_samples: int = SAMPLES, length: int = TOKENS) -> dict[str, torch.Tensor]:
    """Tokens and what comes next, all zero."""
    shape = (num_samples, length)
    return {name: torch.zeros(shape, dtype=torch.long) for name in ("tokens", "targets")}


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy, and what uneven loads cost where the model tells of it."""
    given = model(batch["tokens"])
    logits, balance = given if isinstance(given, tuple) else (given, None)
    nats = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    return nats if balance is None else nats + balance.mean()
