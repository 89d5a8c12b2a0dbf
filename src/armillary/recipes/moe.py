"""The next byte once more, by a decoder in which every byte is computed by a few experts of many.

The recipe `gpt` with another feed-forward: a router (one linear map and a softmax) gives each token
to `top_k` of `num_experts` routed experts, beside one expert that all tokens share. As an option
(`attention=latent`) keys and values come from one small latent vector of each token, and positions
from a rotated key that all heads share. Data, rivals, measures and split are those of `gpt`.

What keeps the router from choosing the same few experts, by `balance`:
- `bias` (the default): a bias on the scores, for the choice alone, which moves against the load
  after each optimiser step. Nothing is added to the loss.
- `loss`: `balance_weight` times the auxiliary loss of every layer, returned beside the logits. It
  is taken over one sequence at a time, so that its mean over samples does not depend on how the
  batch is split over ranks and micro batches. Taken over all tokens of a micro batch, as Switch
  Transformer does, it would: a product of two means is not additive.

With `capacity_factor` above 0 an expert drops what is beyond its share of one call's tokens, so the
loss then depends on which samples share a micro batch. The default drops nothing.

Sources: shared and routed experts, Dai et al. 2024 (DeepSeekMoE), arXiv 2401.06066, eq. 9-11;
multi-head latent attention, DeepSeek-V2, arXiv 2405.04434, eq. 9-11 and 14-19, with the queries
straight from the hidden state; the two ways to balance, `armillary.models.experts`.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from armillary.models.experts import BalanceBias, Experts, balance_loss
from armillary.recipes import gpt
from armillary.recipes.gpt.counts import NUM_BYTES
from armillary.spec import SpecError

# Shapes as in gpt: B samples, T tokens, H hidden, N heads, D of a head, R rotated of a head; and
# C latent, E experts, K experts of a token
LOSS_WEIGHT = 0.01  # Fedus et al. 2021, arXiv 2101.03961, below eq. 6
Pair = tuple[torch.Tensor, torch.Tensor]
settings = gpt.settings
monitor = gpt.monitor
data, optimizer, scheduler = gpt.data, gpt.optimizer, gpt.scheduler
metrics, groups, rivals = gpt.metrics, gpt.groups, gpt.rivals


class LatentAttention(nn.Module):
    """Causal attention whose keys and values are made from one latent vector of each token."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.head_size = hidden_size // num_heads
        self.rotary_size = self.head_size // 2
        self.q = nn.Linear(hidden_size, num_heads * (self.head_size + self.rotary_size), bias=False)
        self.latent = nn.Linear(hidden_size, hidden_size // 2, bias=False)
        self.latent_norm = nn.RMSNorm(hidden_size // 2)
        self.k = nn.Linear(hidden_size // 2, num_heads * self.head_size, bias=False)
        self.v = nn.Linear(hidden_size // 2, num_heads * self.head_size, bias=False)
        self.k_position = nn.Linear(hidden_size, self.rotary_size, bias=False)
        self.o = nn.Linear(num_heads * self.head_size, hidden_size, bias=False)

    def forward(self, x_BTH: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        sizes = (self.head_size, self.rotary_size)
        q_content, q_position = gpt.by_head(self.q(x_BTH), sum(sizes)).split(sizes, dim=-1)
        latent_BTC = self.latent_norm(self.latent(x_BTH))
        k_content = gpt.by_head(self.k(latent_BTC), self.head_size)
        v_BNTD = gpt.by_head(self.v(latent_BTC), self.head_size)
        k_position = gpt.rotate(gpt.by_head(self.k_position(x_BTH), self.rotary_size), cos, sin)
        k_position = k_position.expand(-1, k_content.shape[1], -1, -1)  # one for all heads
        mixed_BNTD = F.scaled_dot_product_attention(
            torch.cat([q_content, gpt.rotate(q_position, cos, sin)], dim=-1),
            torch.cat([k_content, k_position], dim=-1),
            v_BNTD,
            is_causal=True,
        )
        return self.o(mixed_BNTD.transpose(1, 2).flatten(2))


class RoutedFeedForward(nn.Module):
    """The chosen experts' weighted sum and the shared expert [B, T, H]; imbalance, one a sample.

    Where a bias keeps the balance, the imbalance is of no use and 0.
    """

    def __init__(
        self, hidden_size: int, experts: Experts, top_k: int, bias: BalanceBias | None
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(hidden_size, experts.num_experts, bias=False)
        self.experts = experts
        self.shared = gpt.FeedForward(hidden_size, hidden_size)
        self.bias = bias

    def forward(self, x_BTH: torch.Tensor) -> Pair:
        probability_BTE = self.router(x_BTH).softmax(dim=-1)
        if self.bias is None:
            chosen_BTK = probability_BTE.topk(self.top_k, dim=-1).indices
        else:
            chosen_BTK = self.bias(probability_BTE, self.top_k)
        weight_BTK = probability_BTE.gather(-1, chosen_BTK)
        routed_NH = self.experts(*(part.flatten(0, 1) for part in (x_BTH, weight_BTK, chosen_BTK)))
        out_BTH = self.shared(x_BTH) + routed_NH.view_as(x_BTH)
        if self.bias is not None:
            return out_BTH, x_BTH.new_zeros(x_BTH.shape[0])
        return out_BTH, balance_loss(probability_BTE, chosen_BTK)


class Block(nn.Module):
    """One layer; `balance` [B] gathers the imbalance of the layers on its way."""

    def __init__(
        self, hidden_size: int, attention: nn.Module, feed_forward: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden_size)
        self.attention = attention
        self.feed_forward_norm = nn.RMSNorm(hidden_size)
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BTH: torch.Tensor, balance: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> Pair:
        x_BTH = x_BTH + self.dropout(self.attention(self.attention_norm(x_BTH), cos, sin))
        out_BTH, imbalance_B = self.feed_forward(self.feed_forward_norm(x_BTH))
        return x_BTH + self.dropout(out_BTH), balance + imbalance_B


class Decoder(nn.Module):
    """Logits [B, T, V] of the token after each token [B, T], and what balance costs each sample."""

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        hidden_size: int,
        vocab_size: int,
        rotary_size: int,
        balance_weight: float,
    ) -> None:
        super().__init__()
        self.rotary_size, self.balance_weight = rotary_size, balance_weight
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, tokens_BT: torch.Tensor) -> Pair:
        x_BTH = self.embedding(tokens_BT)
        cos, sin = gpt.rotation(x_BTH, self.rotary_size)
        balance_B = x_BTH.new_zeros(x_BTH.shape[0])
        for block in self.blocks:
            x_BTH, balance_B = block(x_BTH, balance_B, cos, sin)
        return self.head(self.norm(x_BTH)), self.balance_weight * balance_B


def model(
    num_layers: int = 4,
    hidden_size: int = 64,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    vocab_size: int = NUM_BYTES,
    num_experts: int = 8,
    top_k: int = 2,
    capacity_factor: float = 0.0,
    balance: str = "bias",
    balance_weight: float = LOSS_WEIGHT,
    attention: str = "grouped",
    dropout: float = 0.0,
) -> nn.Module:
    gpt.check_heads(hidden_size, num_heads, num_kv_heads)
    check_word("balance", balance, ("bias", "loss"))
    check_word("attention", attention, ("grouped", "latent"))
    if not 1 <= top_k <= num_experts or capacity_factor < 0:
        found = f"top_k {top_k} of {num_experts} experts, capacity_factor {capacity_factor}"
        rule = "1 <= top_k <= num_experts, and capacity_factor is 0 (no limit) or more"
        raise SpecError("recipe.top_k", found, rule, "for example 2, 8 and 0")
    head_size = hidden_size // num_heads
    blocks = []
    for _ in range(num_layers):
        mixer: nn.Module = (
            LatentAttention(hidden_size, num_heads)
            if attention == "latent"
            else gpt.Attention(hidden_size, num_heads, num_kv_heads)
        )
        experts = Experts(
            num_experts, hidden_size, hidden_size, capacity_factor=capacity_factor or None
        )
        bias = BalanceBias(num_experts) if balance == "bias" else None
        feed_forward = RoutedFeedForward(hidden_size, experts, top_k, bias)
        blocks.append(Block(hidden_size, mixer, feed_forward, dropout))
    rotary_size = head_size // 2 if attention == "latent" else head_size
    weight = balance_weight if balance == "loss" else 0.0
    return Decoder(blocks, hidden_size, vocab_size, rotary_size, weight)


def tiny(
    attention: str = "grouped", balance: str = "bias", capacity_factor: float = 0.0
) -> nn.Module:
    """The same structure at the smallest size that keeps it."""
    sizes = {"num_layers": 4, "hidden_size": 32, "num_experts": 4}
    return model(**sizes, attention=attention, balance=balance, capacity_factor=capacity_factor)


def check_word(name: str, word: str, known: tuple[str, ...]) -> None:
    """Raises: `SpecError` where `word` is none of `known`."""
    if word not in known:
        rule = f"{name} is {' or '.join(known)}"
        raise SpecError(f"recipe.{name}", repr(word), rule, f"--set {name}={known[0]}")


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits_BTV, balance_B = model(batch["tokens"])
    nats = F.cross_entropy(logits_BTV.flatten(0, 1), batch["targets"].flatten())
    return nats + balance_B.mean()


def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return gpt.score(model(batch["tokens"])[0], batch)
