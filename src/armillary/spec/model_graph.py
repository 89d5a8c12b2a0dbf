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
    partial sums are added), "vocabulary" (rows of an embedding), "head" (the dim that the model
    puts out), "inside" (entries that belong to the units), or, of parameters that stay whole,
    "summed" (every rank has a part of the gradient), "ending" (added after a row) or "tokens" (an
    entry for every token). `dim` is the tensor dim that is cut, and `num_units` the number of equal
    parts that must stay whole: heads, groups or channels, as `unit` says. A degree must divide it.

    `activation_bytes` is the size per sample of what crosses the region's edge in a call and is
    reduced there, `exchanged_bytes` that of what a fused projection exchanges or a head gathers,
    and `num_calls` how often in a forward pass. `num_pieces` pieces of equal length lie one after
    the other in what a fused projection puts out; 0 where they are split by their sizes.
    `num_tokens` are those of a sample at the edge, 0 where what crosses it has no such dim.
    """

    what: ClassVar[str] = "split"

    path: str
    region: str
    kind: str
    dim: int
    num_units: int
    unit: str = "units"
    parameter_bytes: int = 0
    activation_bytes: int = 0
    exchanged_bytes: int = 0
    num_calls: int = 0
    num_pieces: int = 0
    num_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention(Document):
    """A module that calls `scaled_dot_product_attention`: its heads, and bytes per sample.

    `length` counts the queries of a sample and `key_length` its keys; `key_bytes` is the size of
    the keys of one call (as many again are the values), `query_bytes` that of the queries.
    """

    what: ClassVar[str] = "attention"

    path: str
    num_heads: int
    num_key_heads: int
    length: int
    is_causal: bool
    query_bytes: int
    key_bytes: int
    key_length: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed(Document):
    """A module of routed experts (`armillary.Experts`): how many, how often chosen, and bytes.

    `token_bytes` is the size of one sample's tokens once, as they enter the module;
    `has_capacity` says that an expert takes no more than its share.
    """

    what: ClassVar[str] = "routed experts"

    path: str
    num_experts: int
    num_chosen: int
    parameter_bytes: int
    token_bytes: int
    has_capacity: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Glue(Document):
    """A parameter outside the blocks of a chain, and the regions that use it.

    Region k is what runs after k blocks of the chain: 0 before the first of them.
    """

    what: ClassVar[str] = "glue"

    path: str
    parameter_bytes: int
    regions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stencil(Document):
    """A module that makes each position of several neighbouring ones, such as a convolution.

    It takes `length` positions and makes every `stride`-th; of the run of positions that a rank
    holds it needs `before` more ahead of the first and `after` behind the last. `position_bytes`
    is the size of one position per sample, `num_calls` how often it runs; `has_gradient` is false
    where it takes an input of the model itself; `unfit` says why it cannot be cut, if so.
    """

    what: ClassVar[str] = "stencil"

    path: str
    length: int
    stride: int = 1
    before: int = 0
    after: int = 0
    position_bytes: int = 0
    num_calls: int = 1
    has_gradient: bool = True
    unfit: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions(Document):
    """Where a model's positions lie: steps of a sequence, or rows of a grid.

    Of the tensors that the model takes, counted from 0, `argument` holds them, `length` along its
    dim `dim`. It is -1 where positions arise inside the model; none were seen if `length` is 0.
    """

    what: ClassVar[str] = "positions"

    argument: int = -1
    dim: int = 0
    length: int = 0
    stencils: tuple[Stencil, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelGraph(Document):
    """A model as its repeated blocks and the rest; bytes are of the parameters as stored.

    `blocks` are disjoint; `num_parameters` and `parameter_bytes` are of the whole model, each
    shared parameter counted once, in `num_tensors` parameters. `chain` are the paths of the blocks
    that follow one another, in order: what a pipeline may be cut between; `crossings` says for each
    which of the tensors it takes, counted, are handed on from before it (none where no cut is
    sound), `crossing_bytes` how large these are per sample, `chain_flops` what one sample costs
    forward before the first block and from each block to the next, and `glue` what other parameters
    are used where. `unsplit` says for modules that cannot be split why not, and `uncut` why there
    is no chain. `positions` says along which dim of the inputs a sample may be cut. `batch_norms`
    are the channels of every batch norm by path, `recurrent` are the paths of recurrent modules,
    `convolutions` those of convolutions; `tied` lists the paths that are one parameter.
    """

    what: ClassVar[str] = "model graph"

    name: str
    num_parameters: int
    parameter_bytes: int
    num_tensors: int = 1
    blocks: tuple[Block, ...] = ()
    has_batch_norm: bool = False
    batch_norms: Mapping[str, int] = field(default_factory=dict)
    chain: tuple[str, ...] = ()
    uncut: str = ""
    crossings: tuple[tuple[int, ...], ...] = ()
    crossing_bytes: tuple[int, ...] = ()
    chain_flops: tuple[int, ...] = ()
    glue: tuple[Glue, ...] = ()
    splits: tuple[Split, ...] = ()
    unsplit: Mapping[str, str] = field(default_factory=dict)
    attentions: tuple[Attention, ...] = ()
    routed: tuple[Routed, ...] = ()
    positions: Positions = field(default_factory=Positions)
    recurrent: tuple[str, ...] = ()
    convolutions: tuple[str, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()

    @property
    def rest_bytes(self) -> int:
        """Bytes of the parameters outside the repeated blocks."""
        return self.parameter_bytes - sum(block.parameter_bytes for block in self.blocks)

    @property
    def dense_unit_bytes(self) -> dict[str, int]:
        """`unit_bytes` without the routed experts, which are units of their own where cut."""
        sizes = self.unit_bytes
        for routed in self.routed:
            owners = [path for path in sizes if path and f"{routed.path}.".startswith(f"{path}.")]
            sizes[owners[0] if owners else ""] -= routed.parameter_bytes
        return {path: size for path, size in sizes.items() if size}

    @property
    def unit_bytes(self) -> dict[str, int]:
        """Bytes of what is gathered as a whole, by path: every block, and the rest under ""."""
        units = {block.path: block.parameter_bytes for block in self.blocks}
        return units | ({"": self.rest_bytes} if self.rest_bytes else {})
