"""BERT: an encoder with norms behind, trained to find the words that were masked.

Source: Devlin et al. 2018, arXiv 1810.04805, its published sizes and heads.
"""

from dataclasses import dataclass

from armillary.models.families.checks import divides, element_bytes
from armillary.models.layers.attention import Heads, packed
from armillary.models.layers.ends import cross_entropy, head, learned_positions, words
from armillary.models.layers.feed_forward import gelu
from armillary.models.layers.graph import Chain
from armillary.models.layers.part import Part
from armillary.spec import ModelGraph


@dataclass(frozen=True, kw_only=True, slots=True)
class Bert:
    """The sizes of a BERT; 0 stands for the usual.

    `ffn` (4 x hidden) is the inner width of a feed-forward; the head scores every token, its weight
    is the embedding's. `fused`: attention does not write its scores to memory.
    """

    layers: int = 24
    hidden: int = 1024
    heads: int = 16
    seq: int = 512
    vocab: int = 30522
    ffn: int = 0
    fused: bool = True
    dropout: float = 0.0
    dtype: str = "float32"

    def graph(self, name: str) -> ModelGraph:
        """The model's graph, under `name`."""
        ahead, behind, hidden = self._part(), self._part(), self.hidden
        words(ahead, "embedding", self.vocab, hidden, tied=True)
        learned_positions(ahead, "positions", hidden)
        ahead.norm("embedding_norm", hidden, "layer")
        ahead.dropout("dropout", ahead.size(hidden), self.dropout)
        behind.linear("transform", hidden, hidden, bias=True)
        size = behind.size(hidden)
        behind.stream("", "gelu", read=size, written=size, back=(2 * size, size), saved=size)
        behind.norm("norm", hidden, "layer")
        head(behind, "head", hidden, self.vocab, tied="embedding.weight")
        cross_entropy(behind, self.vocab)
        return Chain(
            ahead=ahead,
            behind=behind,
            kinds={"dense": self._block()},
            order=["dense"] * self.layers,
            regions={"embedding.weight": (0, self.layers)},
            tied=(("embedding.weight", "head.weight"),),
            output_bytes=size,
        ).graph(name)

    def _part(self) -> Part:
        return Part(tokens=self.seq, element_bytes=element_bytes("bert", self.dtype))

    def _block(self) -> Part:
        part, hidden = self._part(), self.hidden
        head_dim = divides("bert", "heads", self.heads, "hidden", hidden)
        heads = Heads(
            hidden=hidden,
            heads=self.heads,
            key_heads=self.heads,
            head_dim=head_dim,
            value_dim=head_dim,
            causal=False,
            bias=True,
            fused=self.fused,
            dropout=self.dropout,
        )
        packed(part, "attention", heads)
        part.dropout("dropout", part.size(hidden), self.dropout)
        part.add("", hidden)
        part.norm("attention_norm", hidden, "layer")
        gelu(part, "feed_forward", hidden, self.ffn or 4 * hidden, bias=True)
        part.dropout("dropout", part.size(hidden), self.dropout)
        part.add("", hidden)
        part.norm("feed_forward_norm", hidden, "layer")
        return part


FAMILY = Bert
