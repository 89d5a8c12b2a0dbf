"""Torch modules of the analytic families, written plainly: what `models.families` must equal."""

import torch
import torch.nn.functional as F
from torch import nn

from armillary.models.experts import BalanceBias, Experts
from armillary.recipes import gpt as rotary
from armillary.recipes import moe

# Shapes: B samples, T tokens, H hidden, N heads, D of a head, V vocabulary, F inner size


class FusedAttention(nn.Module):
    """Attention with one projection: each group's queries, keys and values lie together."""

    def __init__(self, sizes: dict, causal: bool) -> None:
        super().__init__()
        hidden, heads = sizes["hidden"], sizes["heads"]
        self.kv_heads = sizes.get("kv_heads", heads)
        self.size, self.group, self.causal = hidden // heads, heads // self.kv_heads, causal
        bias = sizes.get("bias", True)
        self.qkv = nn.Linear(hidden, (heads + 2 * self.kv_heads) * self.size, bias=bias)
        self.out = nn.Linear(heads * self.size, hidden, bias=bias)
        self.dropout, self.fused = sizes.get("dropout", 0.0), sizes.get("fused", True)

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        packed = self.qkv(x_BTH).unflatten(-1, (-1, (self.group + 2) * self.size))
        q, k, v = packed.split([self.group * self.size, self.size, self.size], dim=-1)
        q = q.unflatten(-1, (self.group, self.size)).flatten(2, 3)
        mixed_BTND = self.mix(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2)
        return self.out(mixed_BTND.flatten(2))

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        drop = self.dropout if self.training else 0.0
        if self.fused:
            return F.scaled_dot_product_attention(
                q, k, v, is_causal=self.causal, dropout_p=drop, enable_gqa=self.group > 1
            )
        score = q @ k.transpose(-1, -2) * self.size**-0.5
        if self.causal:
            length = q.shape[2]
            mask = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
            score = score.masked_fill(mask, float("-inf"))
        return F.dropout(score.softmax(-1), self.dropout, self.training) @ v


class Gelu(nn.Module):
    """Two linear maps with GELU between."""

    def __init__(self, hidden: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, inner, bias=bias)
        self.down = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x_BTH)))


class PreNorm(nn.Module):
    """A block of GPT: norms ahead of attention and of the feed-forward."""

    def __init__(self, sizes: dict) -> None:
        super().__init__()
        hidden, bias = sizes["hidden"], sizes.get("bias", True)
        self.attention_norm = nn.LayerNorm(hidden, bias=bias)
        self.attention = FusedAttention(sizes, causal=True)
        self.feed_forward_norm = nn.LayerNorm(hidden, bias=bias)
        self.feed_forward = Gelu(hidden, sizes.get("ffn", 4 * hidden), bias)
        self.dropout = nn.Dropout(sizes.get("dropout", 0.0))

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        x_BTH = x_BTH + self.dropout(self.attention(self.attention_norm(x_BTH)))
        return x_BTH + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTH)))


class Gpt(nn.Module):
    """Learned positions, blocks with norms ahead, and a head that may be the embedding."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        hidden, bias = sizes["hidden"], sizes.get("bias", True)
        self.embedding = nn.Embedding(sizes["vocab"], hidden)
        self.positions = nn.Parameter(torch.zeros(sizes["seq"], hidden))
        self.dropout = nn.Dropout(sizes.get("dropout", 0.0))
        self.blocks = nn.ModuleList(PreNorm(sizes) for _ in range(sizes["layers"]))
        self.norm = nn.LayerNorm(hidden, bias=bias)
        self.head = nn.Linear(hidden, sizes["vocab"], bias=False)
        if sizes.get("tied", True):
            self.head.weight = self.embedding.weight

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        x_BTH = self.embedding(tokens_BT) + self.positions[: tokens_BT.shape[1]]
        x_BTH = self.dropout(x_BTH)
        for block in self.blocks:
            x_BTH = block(x_BTH)
        return self.head(self.norm(x_BTH))


class PostNorm(nn.Module):
    """A block of BERT: norms behind attention and the feed-forward."""

    def __init__(self, sizes: dict) -> None:
        super().__init__()
        hidden = sizes["hidden"]
        self.attention = FusedAttention(sizes, causal=False)
        self.attention_norm = nn.LayerNorm(hidden)
        self.feed_forward = Gelu(hidden, sizes.get("ffn", 4 * hidden), True)
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(sizes.get("dropout", 0.0))

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        x_BTH = self.attention_norm(x_BTH + self.dropout(self.attention(x_BTH)))
        return self.feed_forward_norm(x_BTH + self.dropout(self.feed_forward(x_BTH)))


class Bert(nn.Module):
    """An encoder with a head over all words, which is the embedding."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        hidden = sizes["hidden"]
        self.embedding = nn.Embedding(sizes["vocab"], hidden)
        self.positions = nn.Parameter(torch.zeros(sizes["seq"], hidden))
        self.embedding_norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(sizes.get("dropout", 0.0))
        self.blocks = nn.ModuleList(PostNorm(sizes) for _ in range(sizes["layers"]))
        self.transform = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, sizes["vocab"], bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        x_BTH = self.embedding(tokens_BT) + self.positions[: tokens_BT.shape[1]]
        x_BTH = self.dropout(self.embedding_norm(x_BTH))
        for block in self.blocks:
            x_BTH = block(x_BTH)
        return self.head(self.norm(F.gelu(self.transform(x_BTH))))


class LatentQueries(moe.LatentAttention):
    """Latent attention of any widths, whose queries come from a latent vector too."""

    def __init__(self, sizes: dict) -> None:
        nn.Module.__init__(self)
        hidden, heads = sizes["hidden"], sizes["heads"]
        self.head_size, self.rotary_size = sizes["head_dim"], sizes["rotary"]
        latent, query = sizes["latent"], sizes["q_latent"]
        self.q_latent = nn.Linear(hidden, query, bias=False)
        self.q_latent_norm = nn.RMSNorm(query)
        self.q_out = nn.Linear(query, heads * (self.head_size + self.rotary_size), bias=False)
        self.latent = nn.Linear(hidden, latent, bias=False)
        self.latent_norm = nn.RMSNorm(latent)
        self.k = nn.Linear(latent, heads * self.head_size, bias=False)
        self.v = nn.Linear(latent, heads * self.head_size, bias=False)
        self.k_position = nn.Linear(hidden, self.rotary_size, bias=False)
        self.o = nn.Linear(heads * self.head_size, hidden, bias=False)

    def q(self, x_BTH: torch.Tensor) -> torch.Tensor:
        return self.q_out(self.q_latent_norm(self.q_latent(x_BTH)))


class Plain(nn.Module):
    """A gated feed-forward that tells of no imbalance, as a dense block among routed ones."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x_BTH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out_BTH = self.down(F.silu(self.gate(x_BTH)) * self.up(x_BTH))
        return out_BTH, x_BTH.new_zeros(len(x_BTH))


def deepseek(**sizes: int) -> nn.Module:
    """A decoder of the recipe `moe` with DeepSeek's attention and blocks."""
    blocks = list[nn.Module]()
    hidden = sizes["hidden"]
    for block in range(sizes["layers"]):
        feed_forward: nn.Module = Plain(hidden, sizes["ffn"])
        if block >= sizes["dense"]:
            experts = Experts(sizes["experts"], hidden, sizes["expert_ffn"])
            bias = BalanceBias(sizes["experts"])
            feed_forward = moe.RoutedFeedForward(hidden, experts, sizes["chosen"], bias)
            feed_forward.shared = rotary.FeedForward(hidden, sizes["shared"] * sizes["expert_ffn"])
        blocks.append(moe.Block(hidden, LatentQueries(sizes), feed_forward, 0.0))
    return moe.Decoder(blocks, hidden, sizes["vocab"], sizes["rotary"], 0.0)
