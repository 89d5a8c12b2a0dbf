"""Llama: positions by rotation, RMS norms ahead, gated feed-forwards, grouped heads, no biases.

Sources: Touvron et al. 2023, arXiv 2302.13971; Grattafiori et al. 2024 (Llama 3), arXiv 2407.21783.
`recipes/gpt` is such a model.
"""

from dataclasses import dataclass

from armillary.models.families.checks import divides, element_bytes
from armillary.models.layers.attention import Heads, rotated
from armillary.models.layers.ends import cross_entropy, head, words
from armillary.models.layers.feed_forward import gated
from armillary.models.layers.graph import Chain
from armillary.models.layers.part import Part
from armillary.spec import ModelGraph

MULTIPLE = 256
"""To which Llama rounds two thirds of 4 x hidden up (arXiv 2302.13971, its published code)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama:
    """The sizes of a Llama; 0 stands for the usual.

    `ffn` (two thirds of 4 x hidden, rounded up to 256) is the inner width of a feed-forward,
    `kv_heads` (heads) and `head_dim` (hidden / heads) are those of attention; `tied`: the head is
    the embedding; `bias`: of queries, keys, values and their mixture.
    """

    layers: int
    hidden: int
    heads: int
    seq: int
    vocab: int
    ffn: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    bias: bool = False
    tied: bool = False
    dropout: float = 0.0
    dtype: str = "float32"

    def graph(self, name: str) -> ModelGraph:
        """The model's graph, under `name`."""
        inner = self.ffn or -(-8 * self.hidden // (3 * MULTIPLE)) * MULTIPLE
        block, hidden = self._part(), self.hidden
        block.norm("attention_norm", hidden, "rms")
        rotated(block, "attention", self._heads())
        block.dropout("dropout", block.size(hidden), self.dropout)
        block.add("", hidden)
        block.norm("feed_forward_norm", hidden, "rms")
        gated(block, "feed_forward", hidden, inner, ends=not self.dropout)
        block.dropout("dropout", block.size(hidden), self.dropout)
        block.add("", hidden)
        ahead, behind = ends(self._part(), self._part(), hidden, self.vocab, tied=self.tied)
        return Chain(
            ahead=ahead,
            behind=behind,
            kinds={"dense": block},
            order=["dense"] * self.layers,
            regions={"embedding.weight": (0, self.layers)} if self.tied else {},
            tied=(("embedding.weight", "head.weight"),) if self.tied else (),
            output_bytes=block.size(hidden),
        ).graph(name)

    def _part(self) -> Part:
        return Part(tokens=self.seq, element_bytes=element_bytes("llama", self.dtype))

    def _heads(self) -> Heads:
        return grouped("llama", self.hidden, self.heads, self.kv_heads, self.head_dim, self.bias)


def grouped(
    family: str, hidden: int, heads: int, kv_heads: int, head_dim: int, bias: bool = False
) -> Heads:
    """The sizes of a causal attention in which groups of heads share keys and values.

    Raises: `SpecError` where they do not fit each other.
    """
    divides(family, "kv_heads", kv_heads or heads, "heads", heads)
    head_dim = head_dim or divides(family, "heads", heads, "hidden", hidden)
    return Heads(
        hidden=hidden,
        heads=heads,
        key_heads=kv_heads or heads,
        head_dim=head_dim,
        value_dim=head_dim,
        causal=True,
        bias=bias,
    )


def ends(
    ahead: Part, behind: Part, hidden: int, vocab: int, *, tied: bool = False
) -> tuple[Part, Part]:
    """An embedding ahead of the blocks; a norm, a head and the loss behind them."""
    words(ahead, "embedding", vocab, hidden, tied=tied)
    behind.norm("norm", hidden, "rms")
    head(behind, "head", hidden, vocab, tied="embedding.weight" if tied else "")
    cross_entropy(behind, vocab)
    return ahead, behind


FAMILY = Llama
