"""GPT: learned positions, layer norms ahead, GELU, biases; GPT-2 and 3, Megatron, OPT, MPT, BLOOM.

Sources: Radford et al. 2019 (GPT-2); Brown et al. 2020 (GPT-3), arXiv 2005.14165; routed experts in
every second block, Lepikhin et al. 2020 (GShard), arXiv 2006.16668.
"""

from dataclasses import dataclass

from armillary.models.families.checks import at_most, divides, element_bytes, one_of
from armillary.models.layers.attention import Heads, packed
from armillary.models.layers.ends import cross_entropy, head, learned_positions, words
from armillary.models.layers.feed_forward import Choice, gelu, routed
from armillary.models.layers.graph import Chain
from armillary.models.layers.part import Part
from armillary.spec import ModelGraph


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpt:
    """The sizes of a GPT; 0 stands for the usual.

    `ffn` (4 x hidden) is the inner width of a feed-forward, `kv_heads` (heads) and `head_dim`
    (hidden / heads) are those of attention; `positions`: learned or none; `tied`: the head is the
    embedding; `fused`: attention does not write its scores to memory; `experts` above 0: every
    `every`-th block has so many feed-forwards, of which a token takes `chosen`, with a `group` by
    products with a mask over so many tokens.
    """

    layers: int
    hidden: int
    heads: int
    seq: int
    vocab: int
    ffn: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    positions: str = "learned"
    bias: bool = True
    tied: bool = True
    fused: bool = True
    dropout: float = 0.0
    experts: int = 0
    chosen: int = 2
    every: int = 2
    group: int = 0
    dtype: str = "float32"

    def graph(self, name: str) -> ModelGraph:
        """The model's graph, under `name`."""
        one_of("gpt", "positions", self.positions, ("learned", "none"))
        ahead, behind = self._part(), self._part()
        words(ahead, "embedding", self.vocab, self.hidden, tied=self.tied)
        if self.positions == "learned":
            learned_positions(ahead, "positions", self.hidden)
        ahead.dropout("dropout", ahead.size(self.hidden), self.dropout)
        behind.norm("norm", self.hidden, "layer", bias=self.bias)
        tied = "embedding.weight" if self.tied else ""
        head(behind, "head", self.hidden, self.vocab, tied=tied)
        cross_entropy(behind, self.vocab)
        order = ["routed" if self._is_routed(i) else "dense" for i in range(self.layers)]
        return Chain(
            ahead=ahead,
            behind=behind,
            kinds={kind: self._block(kind == "routed") for kind in dict.fromkeys(order)},
            order=order,
            regions={"embedding.weight": (0, self.layers)} if self.tied else {},
            tied=(("embedding.weight", "head.weight"),) if self.tied else (),
            output_bytes=ahead.size(self.hidden),
        ).graph(name)

    def _part(self) -> Part:
        return Part(tokens=self.seq, element_bytes=element_bytes("gpt", self.dtype))

    def _is_routed(self, block: int) -> bool:
        return self.experts > 0 and block % self.every == self.every - 1

    def _block(self, is_routed: bool) -> Part:
        part, hidden = self._part(), self.hidden
        size = part.size(hidden)
        part.norm("attention_norm", hidden, "layer", bias=self.bias)
        packed(part, "attention", self._heads())
        part.dropout("dropout", size, self.dropout)
        part.add("", hidden)
        part.norm("feed_forward_norm", hidden, "layer", bias=self.bias)
        inner = self.ffn or 4 * hidden
        if is_routed:
            at_most("gpt", "chosen", self.chosen, "experts", self.experts)
            choice = Choice(
                experts=self.experts,
                chosen=self.chosen,
                inner=inner,
                gated=False,
                group=self.group,
            )
            routed(part, "feed_forward", hidden, choice, ends=not self.dropout)
        else:
            gelu(part, "feed_forward", hidden, inner, bias=self.bias, ends=not self.dropout)
        part.dropout("dropout", size, self.dropout)
        part.add("", hidden)
        return part

    def _heads(self) -> Heads:
        key_heads = self.kv_heads or self.heads
        divides("gpt", "kv_heads", key_heads, "heads", self.heads)
        if not self.fused:  # scores of groups are not written out
            one_of("gpt", "kv_heads", str(key_heads), (str(self.heads),))
        head_dim = self.head_dim or divides("gpt", "heads", self.heads, "hidden", self.hidden)
        return Heads(
            hidden=self.hidden,
            heads=self.heads,
            key_heads=key_heads,
            head_dim=head_dim,
            value_dim=head_dim,
            causal=True,
            bias=self.bias,
            fused=self.fused,
            dropout=self.dropout,
        )


FAMILY = Gpt
