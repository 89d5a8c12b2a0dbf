"""A plan: the layout that was chosen, what it is predicted to cost, and why the others lose."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from armillary.spec.document import Document
from armillary.spec.error import SpecError, reason
from armillary.spec.layout import Layout
from armillary.spec.workload import Workload

LEVELS = ("hardware", "middleware", "algorithm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Term(Document):
    """One part of a predicted step or of a rank's memory: seconds or bytes, and whence.

    `level` is where it could be made less: "hardware" (the device's own speed or size),
    "middleware" (what libraries send, launch or reserve), "algorithm" (what the layout makes of
    the model: bubbles, recomputation, copies). `source` is the formula and the measurement behind.
    """

    what: ClassVar[str] = "term"

    name: str
    predicted_s: float = 0.0
    predicted_bytes: float = 0.0
    level: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate(Document):
    """A layout with its predicted numbers: all are of one optimiser step.

    `predicted_goodput` is the share of time that goes into steps that count, the rest being spent
    on checkpoints, lost steps and restarts; `predicted_usd` and `predicted_device_hours` have it
    in them, `predicted_step_s` has not. `predicted_usd` is 0 where the machine has no price,
    `predicted_energy_j` where it has no power.
    """

    what: ClassVar[str] = "candidate"

    layout: Layout
    num_devices: int
    predicted_step_s: float
    predicted_memory_bytes: float
    predicted_device_hours: float
    predicted_usd: float = 0.0
    predicted_energy_j: float = 0.0
    predicted_goodput: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused(Document):
    """A reason why layouts were refused, how many rows of degrees, and the first of them."""

    what: ClassVar[str] = "refusal"

    where: str
    found: str
    rule: str
    fix: str
    count: int
    example: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WhyNot(Document):
    """The best layout of those that were asked about, beside the one that was chosen.

    `asked` is what was said of it. Where all such layouts are refused, `candidate` is None and
    `reasons` say why. `slower_s` are the differences of its terms to those of the chosen one, the
    largest first.
    """

    what: ClassVar[str] = "why not"

    asked: str
    candidate: Candidate | None = None
    reasons: tuple[Refused, ...] = ()
    slower_s: Mapping[str, float] = field(default_factory=dict)
    larger_bytes: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingPoint(Document):
    """The best layout on a number of devices, and how well it uses them.

    `kind` is "strong" (the global batch stays) or "weak" (it grows with the devices).
    `predicted_efficiency` is the samples a second and device, as a share of the most on the curve.
    `predicted_latency_s` is what messages take that would still be there if bytes took no time,
    and is in `predicted_step_s`. `predicted_straggler_s` is what waiting for the slowest rank adds
    to a step, and `predicted_goodput` the share of time left by failures; neither is in it.
    """

    what: ClassVar[str] = "scaling point"

    kind: str
    num_devices: int
    global_batch_size: int
    layout: str
    predicted_step_s: float
    predicted_efficiency: float
    predicted_latency_s: float = 0.0
    predicted_straggler_s: float = 0.0
    predicted_goodput: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Survival(Document):
    """How the job outlives failures: when to save, what saving and failing cost.

    `between_failures_s` is 0 where the machine's failures are not known; `predicted_goodput` is
    then 1, and the interval 0: save as often as you can bear to lose work.
    """

    what: ClassVar[str] = "survival"

    checkpoint_bytes: float
    predicted_checkpoint_s: float = 0.0
    between_failures_s: float = 0.0
    restart_s: float = 0.0
    interval_s: float = 0.0
    interval_steps: int = 0
    predicted_goodput: float = 1.0
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search(Document):
    """What was searched: how many layouts were priced, refused and too large, and the seconds of
    processor time that it took.

    `num_rows` are tuples of degrees with a placement, `num_refused_rows` those that an axis
    refused before anything was priced; a row has many layouts.
    """

    what: ClassVar[str] = "search"

    num_rows: int = 0
    num_refused_rows: int = 0
    num_layouts: int = 0
    num_refused: int = 0
    num_not_fitting: int = 0
    search_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan(Document):
    """A layout for a model on a machine, every predicted term with its source, and the others.

    `layout` is what `train` and `verify` take. `num_devices` are those that it uses, of
    `num_given`. `errors` are those of the predictions where runs were measured, by name, each a
    share. `terms` add up to `predicted_step_s`, `memory` to `predicted_memory_bytes`.
    `frontier` are the layouts that none other beats in time and in cost, energy or memory at
    once; `sweet_spot` is the one after which more devices buy little. `bounds` names what is not
    known of the machine, and what stands in its place. `workload` is what a step asks of ranks and
    links, which `rehearse` plays; `machine_sha256` is a hash of the machine as it was planned for.
    """

    what: ClassVar[str] = "plan"

    layout: Layout
    machine: str
    model: str
    num_parameters: int
    num_devices: int
    num_given: int
    global_batch_size: int
    objective: str
    predicted_step_s: float
    predicted_memory_bytes: float
    memory_limit_bytes: float
    best: Candidate
    terms: tuple[Term, ...] = ()
    memory: tuple[Term, ...] = ()
    survival: Survival | None = None
    runners_up: tuple[Candidate, ...] = ()
    frontier: tuple[Candidate, ...] = ()
    sweet_spot: Candidate | None = None
    scaling: tuple[ScalingPoint, ...] = ()
    refused: tuple[Refused, ...] = ()
    why_not: tuple[WhyNot, ...] = ()
    search: Search = field(default_factory=Search)
    software: str = ""
    graph_sha256: str = ""
    num_steps: int = 0
    errors: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, str] = field(default_factory=dict)
    workload: Workload | None = None
    machine_sha256: str = ""


def read_layout(path: Path) -> Layout:
    """The layout in a JSON file: a layout itself, or a document that has one under `layout`.

    Raises: `SpecError` if the file holds neither.
    """
    values = _read_object(path)
    inner = values.get("layout")
    if isinstance(inner, dict):
        values = inner
    return Layout.from_dict(values, where=str(path))


def read_plan(path: Path) -> tuple[Layout, Plan | None]:
    """The layout in a JSON file, and the plan if the file holds a whole one.

    Raises: `SpecError` if the file holds no layout, or a plan of another version.
    """
    values = _read_object(path)
    if "predicted_step_s" not in values:
        return read_layout(path), None
    plan = Plan.from_dict(values, where=str(path))
    return plan.layout, plan


def _read_object(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(
            str(path), reason(error), "a plan is a JSON file", "check the path"
        ) from None
    if not isinstance(values, dict):
        raise SpecError(str(path), "no object", "a plan is a JSON object", "check the file")
    return values
