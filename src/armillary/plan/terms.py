"""The terms of a price in words: what each is, at which level it lies, and whence its number.

A term's seconds lie at up to two levels. What computing would take on a device that reaches its
peaks is the hardware's, and the rest the middleware's; of a message, what it would still take if
its bytes took no time is the middleware's, and the rest the hardware's. Bubbles, recomputation and
waiting for another stage are the algorithm's: the layout chose them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from armillary.axes import discover
from armillary.networks.rates import with_endless_rates
from armillary.plan.grid import Grid
from armillary.plan.lanes import Learnt
from armillary.plan.price import Priced, price
from armillary.plan.software import Software
from armillary.spec import Efficiency, Machine, ModelGraph, Term
from armillary.spec.plan import LEVELS

BUSY = ("forward", "backward", "recompute", "optimiser")
"""The terms in which a device computes."""
HARDWARE, MIDDLEWARE, ALGORITHM = LEVELS

NEGLIGIBLE = 1e-9
"""A smaller share of a step than this is rounding."""


@dataclass(frozen=True, slots=True)
class Word:
    """What a term is, where its formula stands, and its level if it is the same for all of it."""

    meaning: str
    formula: str
    level: str = ""


SECONDS: Mapping[str, Word] = {
    "forward": Word("forward passes", "core/compute.py"),
    "backward": Word("backward passes", "core/compute.py"),
    "recompute": Word("blocks computed again", "core/compute.py", ALGORITHM),
    "uneven stages": Word("waiting for the dearest stage", "plan/stages.py", ALGORITHM),
    "bubble": Word("stages that fill and drain", "core/pipeline.py", ALGORITHM),
    "optimiser": Word("the optimiser's pass over its states", "plan/price.py"),
    "launch": Word("waiting for the host to launch kernels", "plan/price.py", MIDDLEWARE),
    "micro batches": Word("what a micro batch costs at any size", "plan/software", MIDDLEWARE),
    "contention": Word("computing slowed by messages beside it", "plan/price.py", MIDDLEWARE),
    "slowest replica": Word("waiting for the slowest replica", "core/compute.py", MIDDLEWARE),
    "step": Word("what a step costs at any size", "plan/software", MIDDLEWARE),
}
BYTES: Mapping[str, Word] = {
    "parameters": Word("parameters", "plan/memory.py", ALGORITHM),
    "gradients": Word("gradients", "plan/memory.py", ALGORITHM),
    "optimiser": Word("optimiser states", "plan/memory.py", ALGORITHM),
    "gathered": Word("parameters gathered for use", "plan/memory.py", MIDDLEWARE),
    "activations": Word("activations kept for the backward pass", "plan/memory.py", ALGORITHM),
    "ends": Word("activations before the blocks", "plan/memory.py", ALGORITHM),
    "logits": Word("logits and their gradient", "plan/memory.py", ALGORITHM),
    "workspace": Word("what the loss or one block needs besides", "plan/memory.py", MIDDLEWARE),
    "fragments": Word("fragments of the allocator's cache", "plan/software", MIDDLEWARE),
    "overhead": Word("context and buffers of libraries", "plan/software", MIDDLEWARE),
}


def meaning(name: str) -> str:
    """What a term of time is, in words: of a message, the axis and what it carries."""
    if name in SECONDS:
        return SECONDS[name].meaning
    axis, _, carries = name.partition(" ")
    if axis in discover():
        return f"{carries or 'activations'} sent along {axis}"
    return name


def bytes_meaning(name: str) -> str:
    """What a term of memory is, in words."""
    return BYTES[name].meaning if name in BYTES else name


def terms_of(
    graph: ModelGraph, machine: Machine, software: Software, alone: Grid, global_batch_size: int
) -> tuple[Term, ...]:
    """The terms of the step of a grid of one layout, those of a name together, the longest first.

    They add up to its seconds; those of nothing are left out.
    """

    def seconds(on: Machine, learnt: Learnt) -> dict[str, float]:
        priced = price(
            graph, on, software, alone, global_batch_size=global_batch_size, learnt=learnt
        )
        return {name: only(column) for name, column in priced.terms.items()}

    learnt, peaks, endless = Learnt.of(machine), at_its_peaks(machine), with_endless_rates(machine)
    real = seconds(machine, learnt)
    only_starts = seconds(endless, learnt.with_links_of(endless))
    at_peak = seconds(peaks, learnt.with_devices_of(peaks))
    found, step_s = [], sum(real.values())
    for name in sorted(real, key=lambda name: -real[name]):
        total_s = real[name]
        least_s = at_peak.get(name, 0.0)
        if name not in SECONDS:
            least_s = total_s - only_starts.get(name, 0.0)
        least_s = min(max(least_s, 0.0), total_s)
        for level, part_s in _by_level(name, total_s, least_s).items():
            if part_s > NEGLIGIBLE * step_s:
                source = _source(name, level, machine, software, alone.precisions[0])
                found.append(Term(name=name, predicted_s=part_s, level=level, source=source))
    return tuple(found)


def memory_of(priced: Priced, software: Software) -> tuple[Term, ...]:
    """The terms of the memory of a grid of one layout, the largest first; those of 0 left out."""
    found = []
    for name, column in priced.memory.items():
        size = only(column)
        if size > 0:
            word = BYTES.get(name, Word(name, "plan/memory.py", ALGORITHM))
            source = f"{word.formula}; {software.name}: {software.source}"
            found.append(Term(name=name, predicted_bytes=size, level=word.level, source=source))
    return tuple(sorted(found, key=lambda term: -term.predicted_bytes))


def only(column: Any) -> float:
    """The one number of a column of one layout."""
    return float(np.asarray(column, dtype=np.float64).ravel()[0])


def at_its_peaks(machine: Machine) -> Machine:
    """`machine` with devices that reach their peaks at any size."""
    efficiency = Efficiency(
        matmul_start_s=0.0,
        matmul_fraction=1.0,
        matmul_memory_fraction=1.0,
        half_rows=0.0,
        half_columns=0.0,
        half_inner=0.0,
        attention_fraction=1.0,
        stream_fraction=1.0,
        launch_s=0.0,
        source="peaks",
        relative_error=0.0,
    )
    return replace(machine, device=replace(machine.device, efficiency=efficiency, efficiencies={}))


def _by_level(name: str, total_s: float, least_s: float) -> dict[str, float]:
    level = SECONDS[name].level if name in SECONDS else ""
    if level:
        return {level: total_s}
    return {HARDWARE: least_s, MIDDLEWARE: total_s - least_s}


def _source(name: str, level: str, machine: Machine, software: Software, precision: str) -> str:
    """The formula's file, and what its numbers come from."""
    word = SECONDS.get(name)
    if word is not None and level == ALGORITHM:
        return word.formula
    if word is None:  # a message
        return "; ".join(["axes' traffic, networks/", *_of_links(machine, level)])
    if word.level == MIDDLEWARE:
        return f"{word.formula}; {software.name}: {software.source}"
    key = f"device.peak_flops_per_s.{precision}" if name != "optimiser" else ""
    of_peak = machine.sources.get(key or "device.memory_bytes_per_s", "")
    efficiency = machine.device.efficiency_of(precision)
    told = of_peak if level == HARDWARE else efficiency.source
    return "; ".join(part for part in (word.formula, told) if part)


def _of_links(machine: Machine, level: str) -> list[str]:
    """Whence the rates of the links are (hardware), or their latencies (middleware)."""
    number = "link_bytes_per_s" if level == HARDWARE else "latency_s"
    found = []
    for one in machine.levels:
        path = f"levels.{one.name}.{number}"
        told = machine.sources.get(path) or machine.unknown.get(path) or one.source
        if level == MIDDLEWARE and one.collectives:
            told = machine.sources.get(f"levels.{one.name}.collectives", told)
        if told:
            found.append(f"{one.name}: {told}")
    return found
