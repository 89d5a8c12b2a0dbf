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
    `ends_block`: behind this row nothing in its block is kept for the backward pass, so that
    recomputing the block stops before the row's sums are added.
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
    ends_block: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention(Document):
    """A module that calls `scaled_dot_product_attention`: its heads, and bytes per sample.

    `length` counts the queries of a sample and `key_length` its keys; `key_bytes` is the size of
    the keys of one call, `query_bytes` that of the queries and `value_bytes` that of the values, as
    many as the keys' if 0.
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
    value_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed(Document):
    """A module of routed experts (`armillary.Experts`): how many, how often chosen, and bytes.

    `token_bytes` is the size of one sample's tokens once, as they enter the module, `num_tokens`
    their number (0 where it was not seen); `has_capacity` says that an expert takes no more than
    its share. The experts' parameters are stacked in `num_tensors`; `unfit` says why they cannot be
    held by one rank each, if so.
    """

    what: ClassVar[str] = "routed experts"

    path: str
    num_experts: int
    num_chosen: int
    parameter_bytes: int
    token_bytes: int
    has_capacity: bool = False
    num_tokens: int = 0
    num_tensors: int = 3
    unfit: str = ""


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
class Sum(Document):
    """Numbers that a module adds up over all positions of each sample, in `num_calls` calls.

    `sample_bytes` is the size of one call's numbers per sample. Those of a norm by groups are of
    `num_groups` groups of channels, and as many are added up in the backward pass; with
    `num_groups` 0, of the experts' balance, the gradient needs no sum.
    """

    what: ClassVar[str] = "sum"

    path: str
    sample_bytes: int
    num_calls: int = 1
    num_groups: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Op(Document):
    """One kind of call in a block: what it computes, moves and leaves for the backward pass.

    Every size is of **one call and one sample**; `count` says how many such calls a forward pass of
    the block makes. For `m` samples a size is `m` times as large; what does not grow with the
    samples stands apart in the `constant_` fields, once a call. Bytes are those of the dtype that
    the graph was read in, whose activations have elements of `ModelGraph.element_bytes`.

    `kind` is what bounds the op: "matmul", "attention", "convolution", "stream" (memory:
    elementwise, norm, softmax, loss, copy), "gather" (embedding, index, scatter), "scan" (steps
    that wait for one another) or "fft". `name` is torch's word for it, for people; `path` the
    module that calls it.

    A matmul is `batch` products of [`rows` x `inner`] by [`inner` x `columns`]: with `m` samples,
    `m * batch` products where `batch_is_samples`, else `batch` products of `m * rows` rows (rows
    need not be whole: each of `batch` experts has its share of the tokens). A convolution is the
    product that it amounts to: rows are output positions, columns output channels, inner the input
    channels times the taps, batch the groups. A scan does `steps` such products one after another.

    `flops` counts a multiplication and an addition as two; `backward_flops` is what the gradients
    of both inputs and parameters cost. `read_bytes` and `written_bytes` are activations alone,
    `parameter_bytes` are read whole in every call, however many samples (of a gather only the
    rows that `read_bytes` counts); where it `shares_parameters` the model holds them for an op
    before it, as a head that is the embedding. `saved_bytes` is what autograd
    keeps because of this op until its backward, each storage counted once in the model, at the
    first op that keeps it; `unscaled_saved_bytes` of these keep their size in any precision (masks,
    indices, float32 statistics). `workspace_bytes` is what the backward of the op holds at once
    besides: the gradients that come in (as large as what it wrote) and go out. `num_kernels` and
    `num_backward_kernels` are launches of an eager program.

    `heads`, `key_heads`, `length`, `key_length`, `head_dim` and `causal` are of attention (of a
    sample; flops are of the whole square, twice a causal one). `value_dim` is the width of its
    values where it is not `head_dim`.

    `cut` says what the tensor axis divides: "columns", "inner" or "batch" (heads, groups) of a
    product, "words" (the rows of an embedding; of a loss, the logits where they stay cut), "all" (a
    stream inside a region), "" nothing. `tokens` says that the sequence axis divides it, `experts`
    that it is routed experts' work.
    """

    what: ClassVar[str] = "op"

    path: str
    kind: str
    name: str = ""
    count: int = 1
    rows: float = 0.0
    columns: int = 0
    inner: int = 0
    batch: int = 1
    batch_is_samples: bool = False
    flops: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    parameter_bytes: int = 0
    saved_bytes: int = 0
    unscaled_saved_bytes: int = 0
    workspace_bytes: int = 0
    backward_flops: int = 0
    backward_read_bytes: int = 0
    backward_written_bytes: int = 0
    constant_flops: int = 0
    constant_bytes: int = 0
    constant_saved_bytes: int = 0
    num_kernels: int = 1
    num_backward_kernels: int = 1
    causal: bool = False
    heads: int = 0
    key_heads: int = 0
    length: int = 0
    key_length: int = 0
    head_dim: int = 0
    value_dim: int = 0
    cut: str = ""
    tokens: bool = False
    experts: bool = False
    steps: int = 0
    shares_parameters: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment(Document):
    """A run of ops, and how many equal blocks of the model it stands for.

    `path` is the first of the blocks `paths`, which need not be neighbours; both are empty for
    what runs outside the blocks, and `repeats` is then 1. `after` counts the blocks of the model's
    chain that have begun before the segment first runs: 0 for what is ahead of the chain.
    """

    what: ClassVar[str] = "segment"

    path: str = ""
    repeats: int = 1
    ops: tuple[Op, ...] = ()
    paths: tuple[str, ...] = ()
    after: int = 0

    def total(self, size: str) -> int:
        """The field `size` of its ops, summed over all calls of all its blocks, per sample."""
        return self.repeats * sum(op.count * int(getattr(op, size)) for op in self.ops)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelGraph(Document):
    """A model as its repeated blocks and the rest; bytes are of the parameters as stored.

    `blocks` are disjoint; `num_parameters` and `parameter_bytes` are of the whole model, each
    shared parameter counted once, in `num_tensors` parameters. `chain` are the paths of the blocks
    that follow one another, in order: what a pipeline may be cut between; `crossings` says for each
    which of the tensors it takes, counted, are handed on from before it (none where no cut is
    sound), `crossing_bytes` how large these are per sample, `wide_crossings` and `wide_bytes` the
    same of those that autocast leaves as wide as parameters, `chain_flops` what one sample costs
    forward before the first block and from each block to the next, and `glue` what other parameters
    are used where. `unsplit` says for modules that cannot be split why not, and `uncut` why there
    is no chain. `positions` says along which dim of the inputs a sample may be cut. `batch_norms`
    are the channels of every batch norm by path, `recurrent` are the paths of recurrent modules,
    `convolutions` those of convolutions; `tied` lists the paths that are one parameter. `sums` are
    what modules add up over the positions of a sample.

    `segments` are the ops in the order of the forward pass, equal blocks folded into one: empty
    where only the cuts were read. `element_bytes` is the element size of the activations that
    their bytes are counted in. `repeats` is empty but in a folded graph (`folded`), where a block
    stands for that many equal ones, which are left out of `blocks`, `splits`, `attentions`,
    `routed` and what else lies in a block; `chain` and what goes with it stay whole.
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
    wide_crossings: tuple[tuple[int, ...], ...] = ()
    wide_bytes: tuple[int, ...] = ()
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
    sums: tuple[Sum, ...] = ()
    segments: tuple[Segment, ...] = ()
    element_bytes: int = 4
    repeats: Mapping[str, int] = field(default_factory=dict)

    def times(self, path: str) -> int:
        """For how many equal blocks the one stands that holds `path`; 1 in a whole graph."""
        for block, times in self.repeats.items():
            if f"{path}.".startswith(f"{block}."):
                return times
        return 1

    def total(self, size: str) -> int:
        """The field `size` of all ops of all segments, summed over their calls, per sample."""
        return sum(segment.total(size) for segment in self.segments)

    @property
    def rest_bytes(self) -> int:
        """Bytes of the parameters outside the repeated blocks."""
        return self.parameter_bytes - sum(
            b.parameter_bytes * self.times(b.path) for b in self.blocks
        )

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
