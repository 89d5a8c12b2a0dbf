"""A rehearsal: a plan's step played on its machine, how it varies, and what holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from armillary.spec.document import Document
from armillary.spec.layout import Layout
from armillary.spec.record import Difference, Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Share(Document):
    """A part of a step: `name` is a pass, an axis and what it carries, or what is waited for.

    `level` is the outermost level of the machine that a message crosses, "" for none;
    `collectives` are torch's names of those in it, `bytes` what one rank sent of them.
    """

    what: ClassVar[str] = "share"

    name: str
    predicted_s: float
    level: str = ""
    collectives: tuple[str, ...] = ()
    bytes: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkLoad(Document):
    """How busy the links out of the units below a level are, as shares of a step.

    `busiest` and `mean` are over the units that were played, `units` has each of them, by the index
    of the unit in the machine.
    """

    what: ClassVar[str] = "link load"

    level: str
    network: str
    busiest: float
    mean: float
    units: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution(Document):
    """Seconds of steps that vary by jitter: of `num_samples`, drawn from `seed`."""

    what: ClassVar[str] = "distribution"

    num_samples: int
    seed: int
    predicted_median_s: float
    predicted_p99_s: float
    predicted_least_s: float
    predicted_most_s: float
    jitter: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endurance(Document):
    """What failures and checkpoints leave of `days`: shares of the time in steps that count.

    `predicted_goodput` is the median of `num_runs` runs, `predicted_low` and `predicted_high` their
    5th and 95th percentile; `predicted_failures` is the mean number of failures of a run, and
    `closed_form` what Daly's form says.
    """

    what: ClassVar[str] = "endurance"

    days: float
    num_runs: int
    predicted_goodput: float
    predicted_low: float
    predicted_high: float
    predicted_failures: float
    closed_form: float = 1.0
    num_steps: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class WhatIf(Document):
    """Seconds of the step if something were otherwise: links, jitter, or the placement of axes.

    `network` is a factor on the rates of links, of one `level` or of all; `jitter` one on its
    spreads, `placement` the axes' order, the outermost first.
    """

    what: ClassVar[str] = "what if"

    words: str
    predicted_step_s: float
    network: float = 1.0
    level: str = ""
    jitter: float = 1.0
    placement: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal(Document):
    """A plan's step as it was played: its seconds, what they went into, and how they vary.

    `terms` are those of the rank that computes longest and add up to `predicted_step_s`, which has
    no jitter in it; `planned_step_s` is what the plan says. `critical` is the chain of tasks of
    which each waits for the one before, summed by what they are, and `why` says it in words.
    `num_played` ranks were played for all `num_devices`, and `num_micro_batches_played` of
    `num_micro_batches`. `record` is the program of one rank, where it was rehearsed;
    `compared_ranks` are then the ranks, one of every kind, whose records were held against what the
    axes tell, and `differences` what is otherwise.
    """

    what: ClassVar[str] = "rehearsal"

    model: str
    machine: str
    layout: Layout
    num_devices: int
    predicted_step_s: float
    planned_step_s: float
    terms: tuple[Share, ...]
    critical: tuple[Share, ...] = ()
    loads: tuple[LinkLoad, ...] = ()
    distribution: Distribution | None = None
    endurance: Endurance | None = None
    what_ifs: tuple[WhatIf, ...] = ()
    why: tuple[str, ...] = ()
    num_played: int = 1
    num_tasks: int = 0
    num_micro_batches: int = 1
    num_micro_batches_played: int = 1
    played_s: float = 0.0
    record: Record | None = None
    compared_ranks: tuple[int, ...] = ()
    differences: tuple[Difference, ...] = ()
