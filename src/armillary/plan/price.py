"""Time and memory of every layout of a grid, by terms, in one pass of NumPy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary import networks
from armillary.axes import Axis, discover
from armillary.axes.stages.balance import stages_per_rank
from armillary.axes.stages.fitting import fits
from armillary.core import compute, pipeline
from armillary.plan.folding import fold
from armillary.plan.grid import DIMS, Column, Grid, at
from armillary.plan.lanes import Learnt
from armillary.plan.memory import bytes_by_category, kept_at
from armillary.plan.messages import Kind, Messages, price_messages
from armillary.plan.offload import is_used, offload
from armillary.plan.passes import Ranks, mean_and_dearest
from armillary.plan.software import Software
from armillary.plan.stages import deal
from armillary.plan.work import Parts
from armillary.spec import Machine, ModelGraph, SpecError

WORKING = ("forward", "backward", "recompute", "launch", "micro batches")
"""The terms of a replica's own work, which differ from one to the next."""

SPLITTING_BACKWARD = ("interleaved_zero_bubble", "zbv", "dualpipev")
"""Schedules whose idle time is known for twice as many micro batches as ranks, and more; of fewer
`train` takes another schedule (core/pipeline.py, axes/stages/driven.py)."""

NO_LAYOUT = "is one of several, and there is no pipeline"
"""What is found of places of a grid that are no layouts: the same one stands at another place."""


@dataclass(frozen=True, kw_only=True)
class Priced:
    """Seconds of a step and bytes of the fullest rank, by layout; infinite where refused.

    `refused` holds 0 where a layout is admitted, else one more than the index of its reason in
    `reasons`. `terms` are seconds and `memory` bytes by name, each in a shape that broadcasts to
    the grid; the terms sum up to `step_s`, the memory to `memory_bytes`. `sent_bytes` are what one
    rank sends in a step, by axis and what is carried, `flops` what it computes for a micro batch.
    """

    grid: Grid
    step_s: Column
    memory_bytes: Column
    refused: NDArray[np.uint8]
    reasons: tuple[SpecError, ...]
    terms: Mapping[str, Column]
    memory: Mapping[str, Column]
    sent_bytes: Mapping[str, Column]
    flops: Column


def price(
    graph: ModelGraph,
    machine: Machine,
    software: Software,
    grid: Grid,
    *,
    global_batch_size: int,
    sends: bool = True,
    learnt: Learnt | None = None,
) -> Priced:
    """Every layout of `grid`, with time and memory by terms.

    If nothing `sends`, messages cost nothing: no layout is faster than that. With what was
    `learnt` of the same model on the same machine it is found sooner.
    Rows that an axis does not admit are for the caller to leave out; here a layout is refused
    whose micro batches do not make up the global batch, or whose schedule does not fit.

    Raises: `SpecError` if a peak that is needed is not known.
    """
    folded = fold(graph)
    known = learnt or Learnt.of(machine)
    parts = price_parts_of(folded, machine, software, grid, known.parts)
    messages = price_messages(folded, known, software, grid, global_batch_size if sends else 0)
    micro, refused, reasons = micro_batches(graph, grid, software, global_batch_size)
    dealt = deal(grid, max(parts.num_blocks, 1), head_blocks(parts), software.deals)
    ranks = mean_and_dearest(parts, dealt, grid)
    fullest = bytes_by_category(graph, parts, dealt, software, grid, micro)
    memory: Mapping[str, Column] = fullest
    held: Mapping[str, Column] = {"all": fullest.total}
    sent = _sort(messages, software, grid, micro)
    terms = _passes(ranks, sent, software, grid, micro)
    moved_s = software.slowdown / machine.device.memory_bytes_per_s
    terms |= _exposed(ranks, sent, software, parts.num_blocks, moved_s)
    terms |= once_a_step(graph, memory, machine, software, grid, sends=sends)
    terms["slowest replica"] = _slowest(terms, software, grid)
    if is_used(grid):
        windows_s = (ranks.mean.forward_s, ranks.mean.total_s - ranks.mean.forward_s)
        kept = kept_at(0.0, grid, micro)
        memory, terms["offload"], has_no_room = offload(
            memory, windows_s, kept, micro, parts.num_blocks, grid, machine
        )
        held, reasons = memory, (*reasons, _no_room(machine))
        refused = np.where((refused == 0) & has_no_room, np.uint8(len(reasons)), refused)
    terms = {name: np.asarray(term) for name, term in terms.items()}
    return Priced(
        grid=grid,
        step_s=_summed(terms, refused, grid),
        memory_bytes=_summed(held, refused, grid),
        refused=refused,
        reasons=reasons,
        terms=terms,
        memory=memory,
        sent_bytes={f"{axis} {what}": size for (axis, what, _), size in messages.bytes.items()},
        flops=(parts.before + parts.blocks + parts.after).flops,
    )


def price_parts_of(
    graph: ModelGraph,
    machine: Machine,
    software: Software,
    grid: Grid,
    known: dict[bytes, Parts] | None = None,
) -> Parts:
    """The work of a folded graph on one rank; `known` as of `plan.parts.price_parts`.

    Raises: `SpecError` if the graph has no ops.
    """
    from armillary.plan.parts import price_parts

    if not graph.segments:
        raise SpecError(
            "graph.segments",
            f"none in {graph.name}",
            "a plan prices the ops of a model",
            "trace the model with this version, or name its recipe or family",
        )
    return price_parts(graph, machine.device, software, grid, known)


def _summed(terms: Mapping[str, Column], refused: NDArray[np.uint8], grid: Grid) -> Column:
    """The sum of all terms over the grid; those of one shape are summed before they are spread."""
    by_shape: dict[tuple[int, ...], Any] = {}
    for term in terms.values():
        by_shape[term.shape] = by_shape.get(term.shape, 0.0) + term
    total: Any = np.where(refused > 0, np.inf, 0.0)
    for part in sorted(by_shape.values(), key=lambda column: column.size):
        total = total + part
    return np.array(np.broadcast_to(total, grid.shape)) if total.shape != grid.shape else total


def micro_batches(
    graph: ModelGraph, grid: Grid, software: Software, global_batch_size: int
) -> tuple[Column, NDArray[np.uint8], tuple[SpecError, ...]]:
    """Micro batches of a step, and where they or the schedule do not fit."""
    counts_ends = software.deals == "with ends"
    samples = grid.along("micro_batch_size", grid.micro_batch_sizes) * grid.batch_ranks
    micro = np.maximum(global_batch_size // samples, 1).astype(np.float64)
    stages = grid.stages
    per_rank = grid.along("schedule", [stages_per_rank(s, n) for s, n in grid.schedules])
    in_rounds = grid.along("schedule", [s.startswith("interleaved") for s, _ in grid.schedules])
    splits_backward = grid.along("schedule", [s in SPLITTING_BACKWARD for s, _ in grid.schedules])
    rules = {
        ("micro_batch_size", "does not divide the global batch over the ranks"): (
            global_batch_size % samples != 0
        ),
        ("degrees", "has more stages than blocks"): (
            (stages > 1) & (stages * per_rank > max(len(graph.chain) + 2 * counts_ends, 1))
        ),
        ("schedule", NO_LAYOUT): (
            (stages == 1) & (grid.along("schedule", np.arange(len(grid.schedules))) > 0)
        ),
        ("schedule", "takes micro batches in rounds of the stages' number"): (
            in_rounds & (stages > 1) & (micro % stages != 0)
        ),
        ("schedule", "does not take as few micro batches"): (
            _is_unfit(grid, micro) if not software.takes_few else np.False_
        ),
        ("schedule", "hides its bubble behind twice as many micro batches as ranks"): (
            splits_backward & (stages > 1) & (micro < 2 * stages)
        ),
    }
    refused = np.zeros((1,) * len(DIMS), np.uint8)
    for code, where in enumerate(rules.values(), start=1):
        refused = np.where((refused == 0) & where, np.uint8(code), refused)
    return micro, refused, tuple(_reason(*rule) for rule in rules)


def _is_unfit(grid: Grid, micro: Column) -> NDArray[np.bool_]:
    """Where `train` would run another schedule; of one micro batch there is one order."""
    columns = [
        ~fits(name, grid.stages, stages_per_rank(name, number), micro)
        for name, number in grid.schedules
    ]
    unfit = np.concatenate(columns, axis=DIMS.index("schedule"))
    return np.asarray(unfit & (grid.stages > 1) & (micro > 1))


def _reason(where: str, found: str) -> SpecError:
    return SpecError(
        f"layout.{where}",
        found,
        "a step is cut into equal micro batches that the schedule takes (plan/price.py)",
        "use another micro batch, degree or schedule",
    )


def _no_room(machine: Machine) -> SpecError:
    return SpecError(
        "layout.offload",
        f"more than the {machine.host.memory_bytes / 2**30:.0f} GiB of a rank's host",
        "what is moved off a device lies in its host's memory (plan/offload.py)",
        "move less, or cut the model over more ranks",
    )


def head_blocks(parts: Parts) -> Column:
    """The work behind the chain of blocks, counted in blocks."""

    def passes(work: Any) -> Any:
        return work.forward_s + work.backward_input_s + work.backward_weight_s

    block = passes(parts.block)
    return np.asarray(passes(parts.after) / np.where(block > 0, block, 1.0))


@dataclass(frozen=True, slots=True)
class _Sent:
    """Seconds of messages of a step: inside the passes by axis, and of what passes may hide."""

    inside: Mapping[str, Column]
    beside: Mapping[Kind, Column]
    sizes: Mapping[Kind, Column]
    launch_s: Column
    rounds: Mapping[Kind, Column]

    @property
    def inside_s(self) -> Column:
        """All that is inside the passes."""
        return np.asarray(sum(self.inside.values(), np.zeros((1,) * len(DIMS))))


def _sort(messages: Messages, software: Software, grid: Grid, micro: Column) -> _Sent:
    """A pipeline's messages are told for all of its ranks; one waits for them as the step fills,
    and then for a share of them.
    """
    stages = grid.stages
    seconds, inside = messages.seconds, dict[str, Any]()
    calls: Any = np.zeros((1,) * len(DIMS))
    for (axis, carries, phase), total in seconds.items():
        if carries not in ("activations", "counts"):
            continue
        if discover()[axis].splits_module:
            waited = software.exposes_sends + (stages - 1.0) / micro
            total = total / stages * waited
        else:
            calls = calls + messages.counts[axis, carries, phase]
        total = total * (1.0 - hidden_inside(discover()[axis], software))
        inside[axis] = inside.get(axis, 0.0) + total
    beside = {k: v for k, v in seconds.items() if k[1] not in ("activations", "counts")}
    launch_s = calls * software.message_launch_s
    return _Sent(inside, beside, messages.bytes, launch_s, messages.rounds)


def hidden_inside(axis: Axis, software: Software) -> float:
    """The share of an axis' messages inside the passes that the passes hide."""
    if not axis.shares_parameters or axis.splits_module:
        return 0.0
    if axis.splits_batch:
        return software.hides_experts * software.overlaps_experts
    return software.hides_regions


def _passes(
    ranks: Ranks, sent: _Sent, software: Software, grid: Grid, micro: Column
) -> dict[str, Column]:
    """Seconds of all micro batches on a rank, with what it sends between, and of waiting."""
    mean, again, inside = ranks.mean, ranks.again_s, sent.inside_s / micro
    busy_forward = mean.forward_s + inside / 3.0
    busy_backward = mean.backward_input_s + mean.backward_weight_s + again + inside * (2.0 / 3.0)
    again_launch = ranks.forward_launch_s * (again > 0)
    calls = sent.launch_s / micro
    forward_launch = ranks.forward_launch_s + calls / 3.0
    backward_launch = ranks.backward_launch_s + again_launch + calls * (2.0 / 3.0)
    launch = forward_launch + backward_launch
    if not software.blocks_launches:
        launch = compute.waited_s(busy_forward, forward_launch)
        launch = launch + compute.waited_s(busy_backward, backward_launch)
    return dict(sent.inside) | {
        "forward": micro * mean.forward_s,
        "backward": micro * (mean.backward_input_s + mean.backward_weight_s),
        "recompute": micro * again,
        "launch": micro * launch,
        "micro batches": micro * software.micro_batch_s,
        "uneven stages": micro * (ranks.dearest_s - mean.total_s - again),
        "bubble": _bubble(mean, again + inside + launch, grid),
    }


def _bubble(mean: pipeline.Passes, besides: Column, grid: Grid) -> Column:
    """Seconds of waiting, along the schedules; `besides` counts as a part of the passes."""
    stages = grid.stages
    passes = pipeline.Passes(
        forward_s=mean.forward_s + besides / 3.0,
        backward_input_s=mean.backward_input_s + besides * 2.0 / 3.0,
        backward_weight_s=mean.backward_weight_s,
    )
    columns = [
        pipeline.idle_passes_s(
            name, stages, float(stages_per_rank(name, number)), _of_schedule(passes, index)
        )
        for index, (name, number) in enumerate(grid.schedules)
    ]
    return np.concatenate(np.broadcast_arrays(*columns), axis=DIMS.index("schedule"))


def _of_schedule(passes: pipeline.Passes, index: int) -> pipeline.Passes:
    return pipeline.Passes(
        forward_s=at(passes.forward_s, "schedule", index),
        backward_input_s=at(passes.backward_input_s, "schedule", index),
        backward_weight_s=at(passes.backward_weight_s, "schedule", index),
    )


def once_a_step(
    graph: ModelGraph,
    memory: Mapping[str, Column],
    machine: Machine,
    software: Software,
    grid: Grid,
    *,
    sends: bool = True,
) -> dict[str, Column]:
    """Seconds of the update, by its bytes or its launches, and what a step costs at any size."""
    states = memory["parameters"] + memory["gradients"] + memory["optimiser"]
    rate = machine.device.memory_bytes_per_s * machine.device.efficiency.stream_fraction
    own_s = np.asarray(software.launch_s, np.float64)
    launch_s = np.where(own_s > 0, own_s, machine.device.efficiency.launch_s)
    launched_s = software.optimizer_kernels * launch_s * graph.num_tensors / grid.stages
    updated_s = np.maximum(software.optimizer_passes * states / rate, launched_s)
    agreed_s = software.step_s + software.agreement_s * (grid.batch_ranks > 1)
    if sends and software.sums_bytes:
        spans = [(grid.num_ranks, 1)]
        agreed_s = agreed_s + networks.seconds(machine, "all_reduce", software.sums_bytes, spans)
    return {
        "optimiser": np.asarray(updated_s, dtype=np.float64),
        "step": np.asarray(agreed_s, dtype=np.float64),
    }


def _slowest(terms: Mapping[str, Column], software: Software, grid: Grid) -> Column:
    """Seconds that replicas wait for the one whose samples or kernels took the longest."""
    if not software.spread:
        return np.zeros((1,) * len(DIMS))
    busy = sum((terms[name] for name in WORKING), np.zeros((1,) * len(DIMS)))
    return np.asarray(busy * compute.slowest_of(grid.batch_ranks, software.spread))


def _exposed(
    ranks: Ranks, sent: _Sent, software: Software, num_blocks: int, slower_s: Any
) -> dict[str, Column]:
    """What is left of gradients and gathered parameters when the passes have hidden the rest.

    What is sent beside the same pass shares the time that it takes, and makes it longer by
    `slower_s` a byte.
    """
    backward = ranks.mean.backward_input_s + ranks.mean.backward_weight_s + ranks.again_s
    again_launch = ranks.forward_launch_s * (ranks.again_s > 0)
    windows = {  # a pass that waits for its host goes on as long, and hides as much
        "forward": np.maximum(ranks.mean.forward_s, ranks.forward_launch_s),
        "backward": np.maximum(backward, ranks.backward_launch_s + again_launch),
    }
    terms: dict[str, Any] = {}
    for phase, window in windows.items():
        of_phase = {k: v for k, v in sent.beside.items() if k[2] == phase}
        total: Any = sum(of_phase.values(), np.zeros((1,) * len(DIMS)))
        slower: Any = 0.0
        for (axis, carries, _), seconds in of_phase.items():
            share = software.hides_gradients if carries == "gradients" else software.hides_gathers
            part = seconds / np.where(total > 0, total, 1.0)
            beside = window * sent.rounds[axis, carries, phase] * part
            most = np.minimum(beside * share, seconds * (1.0 - 1.0 / max(num_blocks, 1)))
            if np.any(slower_s):
                size = sent.sizes[axis, carries, phase]
                slower = slower + most * (size / np.where(seconds > 0, seconds, 1.0))
            name = f"{axis} {carries}"
            terms[name] = terms.get(name, 0.0) + (seconds - most)
        terms["contention"] = terms.get("contention", 0.0) + slower_s * slower
    for (axis, carries, phase), seconds in sent.beside.items():
        if phase not in windows:
            terms[f"{axis} {carries}"] = terms.get(f"{axis} {carries}", 0.0) + seconds
    return terms
