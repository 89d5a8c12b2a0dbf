"""A record: the program of one rank for one optimiser step, as it was rehearsed on fake devices."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from armillary.spec.document import Document
from armillary.spec.layout import Layout

CATEGORIES = (
    "parameters",
    "gradients",
    "optimiser",
    "activations",
    "communication",
    "workspace",
)
"""What a rank's memory is for; a record's bytes are told by these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective(Document):
    """One kind of message that a rank sends in a step.

    `collective` is torch's name of it. `group` are the axes whose ranks take part, in the order of
    the mesh, `num_ranks` how many these are. `bytes` is the size of the whole tensor before it is
    divided over the group, as the axes tell it (`Transfer.bytes`); of a "send" it is what this rank
    sends. `count` is how often in a step, `phase` the pass it was sent in ("forward", "backward" or
    "optimiser"), `module` the path of what sent it, "" for the whole model.
    """

    what: ClassVar[str] = "collective"

    collective: str
    group: tuple[str, ...]
    num_ranks: int
    bytes: int
    count: int
    phase: str = ""
    module: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment(Document):
    """Bytes by category at one moment of a step: the fullest while `label` ran.

    `label` is a pass and its micro batch, such as "forward 3", with the block after a space.
    """

    what: ClassVar[str] = "moment"

    label: str
    bytes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Document):
    """One number of records beside the one that the axes tell of the same layout.

    `kind` says which: "parameters" or "optimiser" for the bytes that a rank holds on average, or a
    collective with its axes for what all ranks send. `unit` says whether `recorded` and `planned`
    are "bytes" or "messages". `module` is the block that causes it, or "" where it is none.
    """

    what: ClassVar[str] = "difference"

    kind: str
    unit: str
    recorded: float
    planned: float
    module: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record(Document):
    """What rank `rank` of `layout` does in one optimiser step, seen on fake devices.

    `coordinates` are its places along the axes of the mesh. `peak` are the bytes by category at the
    fullest moment, which is in `timeline` under `peak_at`; `most` are the most bytes of every
    category at any moment. What an allocator or a driver needs besides is not in them.

    `flops` are those of products, attention and convolutions, as torch counts them, forward and
    backward. `num_stands_for` is how many ranks of the layout do the same, `reason` says in what it
    differs from others. `num_folded` is how many of its blocks were not run themselves, but taken
    to do what an equal one did; `num_micro_batches_run` likewise how many micro batches were run of
    `num_micro_batches`.
    """

    what: ClassVar[str] = "record"

    model: str
    layout: Layout
    num_ranks: int
    rank: int
    coordinates: Mapping[str, int] = field(default_factory=dict)
    global_batch_size: int
    num_micro_batches: int
    peak_bytes: int
    peak: Mapping[str, int]
    peak_at: str = ""
    most: Mapping[str, int] = field(default_factory=dict)
    timeline: tuple[Moment, ...] = ()
    flops: float = 0.0
    flops_by_phase: Mapping[str, float] = field(default_factory=dict)
    collectives: tuple[Collective, ...] = ()
    num_folded: int = 0
    num_micro_batches_run: int = 0
    num_stands_for: int = 1
    reason: str = ""
