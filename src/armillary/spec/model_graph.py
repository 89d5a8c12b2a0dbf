"""A model as numbers: what its parameters weigh, which blocks repeat, and what may be cut where."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from armillary.spec.document import Document


@dataclass(frozen=True, kw_only=True, slots=True)
class Block(Document):
    """One block that is gathered, saved or recomputed as a whole: its module path and weight.

    `activation_bytes` is the size of what it hands on, per sample; 0 where no call was seen.
    """

    what: ClassVar[str] = "block"

    path: str
    num_parameters: int
    parameter_bytes: int
    activation_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Split(Document):
    """A parameter that may be cut along one of its dims, in agreement with others of its `region`.

    `kind` is "column" (the dim that the module puts out), "row" (the dim that it takes in, whose
    partial sums are added), or "vocabulary" (rows of an embedding). `dim` is the tensor dim that
    is cut, and `num_units` the number of equal parts that must stay whole: heads, groups or
    channels. A degree must divide it. `activation_bytes` is the size per sample of what crosses
    the region's edge and is reduced there.
    """

    what: ClassVar[str] = "split"

    path: str
    region: str
    kind: str
    dim: int
    num_units: int
    activation_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention(Document):
    """A module that calls `scaled_dot_product_attention`: its heads, and bytes per sample.

    `key_bytes` is the size of the keys of one call (as many again are the values), `query_bytes`
    that of the queries.
    """

    what: ClassVar[str] = "attention"

    path: str
    num_heads: int
    num_key_heads: int
    length: int
    is_causal: bool
    query_bytes: int
    key_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed(Document):
    """A module of routed experts (`armillary.Experts`): how many, how often chosen, and bytes.

    `token_bytes` is the size of one sample's tokens once, as they enter the module.
    """

    what: ClassVar[str] = "routed experts"

    path: str
    num_experts: int
    num_chosen: int
    parameter_bytes: int
    token_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelGraph(Document):
    """A model as its repeated blocks and the rest; bytes are of the parameters as stored.

    `blocks` are disjoint; `num_parameters` and `parameter_bytes` are of the whole model, each
    shared parameter counted once. `chain` are the paths of the blocks that follow one another,
    in order: what a pipeline may be cut between. `unsplit` says for modules that cannot be split
    why not, and `uncut` why there is no chain. `recurrent` are the paths of recurrent modules,
    `convolutions` those of convolutions; `tied` lists the paths that are one parameter.
    """

    what: ClassVar[str] = "model graph"

    name: str
    num_parameters: int
    parameter_bytes: int
    blocks: tuple[Block, ...] = ()
    has_batch_norm: bool = False
    chain: tuple[str, ...] = ()
    uncut: str = ""
    splits: tuple[Split, ...] = ()
    unsplit: Mapping[str, str] = field(default_factory=dict)
    attentions: tuple[Attention, ...] = ()
    routed: tuple[Routed, ...] = ()
    recurrent: tuple[str, ...] = ()
    convolutions: tuple[str, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()

    @property
    def rest_bytes(self) -> int:
        """Bytes of the parameters outside the repeated blocks."""
        return self.parameter_bytes - sum(block.parameter_bytes for block in self.blocks)

    @property
    def unit_bytes(self) -> dict[str, int]:
        """Bytes of what is gathered as a whole, by path: every block, and the rest under ""."""
        units = {block.path: block.parameter_bytes for block in self.blocks}
        return units | ({"": self.rest_bytes} if self.rest_bytes else {})
