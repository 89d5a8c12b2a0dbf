"""DeepSeek: latent attention, many small experts and some shared, the first blocks dense.

Sources: DeepSeek-V2, arXiv 2405.04434; DeepSeek-V3, arXiv 2412.19437. The defaults are those of V3.
"""

from dataclasses import dataclass, field

from armillary.models.families.checks import at_most, element_bytes
from armillary.models.families.llama import ends
from armillary.models.layers.attention import Heads, latent
from armillary.models.layers.feed_forward import Choice, gated, routed
from armillary.models.layers.graph import Chain
from armillary.models.layers.part import Part
from armillary.spec import ModelGraph


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepSeek:
    """The sizes of a DeepSeek model; 0 stands for none.

    `latent` is the width of what keys and values are made of, `q_latent` that of queries (0: from
    the hidden state), `rotary` the rotated part of a head beside its `head_dim`, `value_dim` the
    width of its values. Each of `experts` has the inner width `expert_ffn`, a token takes `chosen`,
    and all take `shared` more of them; the first `dense` blocks have one feed-forward of `ffn`.
    """

    layers: int = 61
    hidden: int = 7168
    heads: int = 128
    seq: int = 4096
    vocab: int = 129280
    experts: int = 256
    chosen: int = 8
    expert_ffn: int = 2048
    shared: int = field(default=1, metadata={"least": 0})
    dense: int = field(default=3, metadata={"least": 0})
    ffn: int = 18432
    latent: int = 512
    q_latent: int = field(default=1536, metadata={"least": 0})
    rotary: int = 64
    head_dim: int = 128
    value_dim: int = 128
    biased: bool = True
    dropout: float = 0.0
    dtype: str = "float32"

    def graph(self, name: str) -> ModelGraph:
        """The model's graph, under `name`."""
        at_most("deepseek", "chosen", self.chosen, "experts", self.experts)
        at_most("deepseek", "dense", self.dense, "layers", self.layers)
        order = ["dense"] * self.dense + ["routed"] * (self.layers - self.dense)
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
        return Part(tokens=self.seq, element_bytes=element_bytes("deepseek", self.dtype))

    def _block(self, is_routed: bool) -> Part:
        part, hidden = self._part(), self.hidden
        heads = Heads(
            hidden=hidden,
            heads=self.heads,
            key_heads=self.heads,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            causal=True,
        )
        part.norm("attention_norm", hidden, "rms")
        latent(part, "attention", heads, self.latent, self.rotary, self.q_latent)
        part.dropout("dropout", part.size(hidden), self.dropout)
        part.add("", hidden)
        part.norm("feed_forward_norm", hidden, "rms")
        if is_routed:
            choice = Choice(
                experts=self.experts,
                chosen=self.chosen,
                inner=self.expert_ffn,
                shared=self.shared * self.expert_ffn,
                biased=self.biased,
            )
            routed(part, "feed_forward", hidden, choice, ends=not self.dropout)
        else:
            gated(part, "feed_forward", hidden, self.ffn, ends=not self.dropout)
        part.dropout("dropout", part.size(hidden), self.dropout)
        part.add("", hidden)
        return part


FAMILY = DeepSeek
