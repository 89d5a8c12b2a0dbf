"""The program around a model: what it holds per parameter, sends, hides and launches."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import ClassVar

from armillary.spec import Document, SpecError, nearest

FULL = ("float32", "tf32", "float64")


@dataclass(frozen=True, kw_only=True, slots=True)
class Software(Document):
    """One generation of training software, as far as time and memory depend on it.

    The `_bytes` fields are of one parameter, by "mixed" (16 bits and fewer), "full" or the name of
    a precision: `parameter_bytes` as computed with, `gradient_bytes` as summed, `optimizer_bytes`
    of its states and master copy, `gathered_bytes` and `reduced_bytes` as sent. `shards_along` are
    the axes beside `sharded` over which they are cut where ranks hold the same, from the stage of
    sharding on that cuts them.

    `kernel_fraction`, `attention_fraction` and `stream_passes` scale what a device reaches: the
    named factor of a software generation. `has_fused_attention` says that attention keeps no square
    of the sequence, `fuses_scores` that scale, mask and softmax of one that does are one kernel
    where it takes them (`plan/habits.py`). `selective_keeps` is what selective recomputing keeps:
    "matmul" their results, or those of "every second matmul", or "attention" all but what is inside
    one. With `stops_early` a block is run again as far as something is kept of it, otherwise whole.
    `fuses_kept` says that fused kernels keep less for the backward pass, and `loss_bytes` are
    those of a logit, with all of its loss, when they are most; 0 as the graph tells. `cuts_norms`
    is whether tensor parallelism cuts norms where a run does not say.

    `hides_gradients` and `hides_gathers` are the shares of the passes beside which they are sent.
    `hides_experts` is the share of routed experts' messages that passes hide, if the program
    `overlaps_experts` at all; with `sends_once` a token is sent once to a rank, or to a unit of the
    innermost links, whatever number of its experts are there.
    `deals` is how blocks are dealt to stages (`plan/stages.py`), `takes_few` whether 1f1b runs with
    fewer micro batches than stages. `exposes_sends` is the share of a
    pipeline's messages that ranks wait for; with `slices_sends` each rank of a tensor group sends
    its part of them. `keeps_wide` is whether activations that no product takes or puts out are sent
    in 32 bits, as torch's autocast leaves them. `slowdown` is how often
    what is sent beside a pass goes through the device's memory, or keeps it as long from the pass:
    what messages read and write, copies in and out of their buffers, and units that they take.
    `launch_s` is the host's time a kernel, 0 for the device's own, and
    `message_launch_s` its time a message inside a pass; with `blocks_launches` the host waits for
    each kernel before it launches the next; `micro_batch_s` a fixed time a micro batch,
    `step_s` one a step, `optimizer_passes` how often an update moves its states. `overhead_bytes`
    lie on every device besides, and the caching of memory takes `fragmentation` more of what is
    allocated.

    `stream_start_s` is the device's time of a kernel bound by memory beside its bytes, of those
    kernels that fusing leaves; `cast_kernels` the share of more kernels in mixed precision, and
    `optimizer_kernels` those of an update for each parameter tensor. `agreement_s` is a time a step
    in which several replicas agree on what to sum, `sums_bytes` what all ranks add up at the end of
    one, for which they wait: losses and wishes; `spread` is the relative standard deviation
    of a replica's time, for the slowest of which the others wait; `spread_of_lengths` is that where
    samples are of unlike lengths.
    """

    what: ClassVar[str] = "software"

    name: str
    title: str = ""
    source: str = ""
    parameter_bytes: Mapping[str, float] = field(default_factory=lambda: {"mixed": 4, "full": 4})
    gradient_bytes: Mapping[str, float] = field(default_factory=lambda: {"mixed": 4, "full": 4})
    optimizer_bytes: Mapping[str, float] = field(default_factory=lambda: {"mixed": 8, "full": 8})
    gathered_bytes: Mapping[str, float] = field(default_factory=lambda: {"mixed": 4, "full": 4})
    reduced_bytes: Mapping[str, float] = field(default_factory=lambda: {"mixed": 4, "full": 4})
    kernel_fraction: float = 1.0
    attention_fraction: float = 1.0
    stream_passes: float = 1.0
    has_fused_attention: bool = True
    fuses_scores: bool = False
    selective_keeps: str = "matmul"
    stops_early: bool = True
    hides_gradients: float = 1.0
    hides_gathers: float = 1.0
    exposes_sends: float = 1.0
    slices_sends: bool = False
    keeps_wide: bool = False
    slowdown: float = 0.0
    optimizer_passes: float = 2.0
    deals: str = "balanced"
    takes_few: bool = True
    launch_s: float = 0.0
    message_launch_s: float = 0.0
    blocks_launches: bool = False
    micro_batch_s: float = 0.0
    step_s: float = 0.0
    overhead_bytes: float = 0.0
    fragmentation: float = 0.0
    loss_passes: float = 1.0
    loss_bytes: float = 0.0
    fuses_kept: bool = False
    cuts_norms: bool = False
    shards_along: tuple[str, ...] = ()
    unaligned_slowdown: float = 1.0
    convolution_speedup: float = 1.0
    trains_weights: bool = True
    experts_s: float = 0.0
    hides_experts: float = 0.0
    overlaps_experts: bool = True
    sends_once: bool = False
    hides_regions: float = 0.0
    stream_start_s: float = 0.0
    cast_kernels: float = 0.0
    optimizer_kernels: float = 0.0
    agreement_s: float = 0.0
    sums_bytes: float = 0.0
    spread: float = 0.0
    spread_of_lengths: float = 0.0
    dropout: float = 0.0
    zero: int = 0
    loss: str = "whole"
    sources: tuple[str, ...] = ()
    years: tuple[int, ...] = ()

    def of(self, sizes: Mapping[str, float], precision: str) -> float:
        """The entry of one of the `_bytes` fields for a precision; float64 has twice "full"."""
        if precision not in FULL:
            return sizes.get(precision, sizes["mixed"])
        return sizes["full"] * (2.0 if precision == "float64" else 1.0)


@cache
def discover() -> Mapping[str, Software]:
    """The software by name: every file in `plan/software`."""
    found = {}
    for entry in sorted(files(__package__).joinpath("software").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".toml"):
            values = tomllib.loads(entry.read_text(encoding="utf-8"))
            software = Software.from_dict(values, f"plan/software/{entry.name}")
            found[software.name] = software
    return found


def load(name: str) -> Software:
    """The software called `name`.

    Raises: `SpecError` if there is none.
    """
    found = discover()
    if name not in found:
        raise SpecError(
            "--software",
            repr(name),
            "a plan is for software that Armillary knows (plan/software)",
            nearest(name, found),
        )
    return found[name]


def of_source(name: str, source: str, year: int) -> Software:
    """The software called `name` or, where it is empty, that which `source` of that year ran.

    Where no pattern fits it is the one of `armillary`.

    Raises: `SpecError` on a name that we have not.
    """
    if name:
        return load(name)
    for software in discover().values():
        first, last = software.years or (0, 9999)
        fits = any(re.search(pattern, source, re.IGNORECASE) for pattern in software.sources)
        if fits and first <= (year or first) <= last:
            return software
    return load("armillary")
