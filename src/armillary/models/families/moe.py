"""Llama with routed experts: Mixtral, Qwen3-MoE, GPT-OSS and the recipe `moe`.

Sources: Jiang et al. 2024 (Mixtral), arXiv 2401.04088; shared experts, Dai et al. 2024, arXiv
2401.06066.
"""

from dataclasses import dataclass

from armillary.models.families.checks import at_most, element_bytes
from armillary.models.families.llama import ends, grouped
from armillary.models.layers.attention import rotated
from armillary.models.layers.feed_forward import Choice, gated, routed
from armillary.models.layers.graph import Chain
from armillary.models.layers.part import Part
from armillary.spec import ModelGraph


@dataclass(frozen=True, kw_only=True, slots=True)
class Moe:
    """The sizes of a Llama with experts; 0 stands for the usual.

    Each of `experts` has the inner width `expert_ffn`, a token takes `chosen`; `shared` is the
    inner width of what every token takes besides (0: nothing). The first `dense` blocks have one
    feed-forward of width `ffn`, and then every `every`-th has experts. `biased`: a bias on the
    scores evens the load.
    """

    layers: int
    hidden: int
    heads: int
    seq: int
    vocab: int
    experts: int
    chosen: int
    expert_ffn: int
    shared: int = 0
    ffn: int = 0
    dense: int = 0
    every: int = 1
    kv_heads: int = 0
    head_dim: int = 0
    bias: bool = False
    biased: bool = True
    dropout: float = 0.0
    dtype: str = "float32"

    def graph(self, name: str) -> ModelGraph:
        """The model's graph, under `name`."""
        at_most("moe", "chosen", self.chosen, "experts", self.experts)
        order = ["routed" if self._is_routed(i) else "dense" for i in range(self.layers)]
        ahead, behind = ends(self._part(), self._part(), self.hidden, self.vocab)
        size = ahead.size(self.hidden)
        return Chain(
            ahead=ahead,
            behind=behind,
            kinds={kind: self._block(kind == "routed") for kind in dict.fromkeys(order)},
            order=order,
            output_bytes=size,
            handed=2,  # beside the activations, how uneven the load is
            handed_bytes=size + ahead.element_bytes,
        ).graph(name)

    def _part(self) -> Part:
        return Part(tokens=self.seq, element_bytes=element_bytes("moe", self.dtype))

    def _is_routed(self, block: int) -> bool:
        return block >= self.dense and (block - self.dense + 1) % self.every == 0

    def _block(self, is_routed: bool) -> Part:
        part, hidden = self._part(), self.hidden
        heads = grouped("moe", hidden, self.heads, self.kv_heads, self.head_dim, self.bias)
        part.norm("attention_norm", hidden, "rms")
        rotated(part, "attention", heads)
        part.dropout("dropout", part.size(hidden), self.dropout)
        part.add("", hidden)
        part.norm("feed_forward_norm", hidden, "rms")
        if is_routed:
            choice = Choice(
                experts=self.experts,
                chosen=self.chosen,
                inner=self.expert_ffn,
                shared=self.shared,
                biased=self.biased,
            )
            routed(part, "feed_forward", hidden, choice, ends=not self.dropout)
        else:
            inner = self.ffn or 4 * hidden
            gated(part, "feed_forward", hidden, inner, ends=not self.dropout)
        part.dropout("dropout", part.size(hidden), self.dropout)
        part.add("", hidden)
        return part


FAMILY = Moe
