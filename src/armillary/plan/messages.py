"""Seconds that the axes' messages take, over a grid: `traffic` of each axis, priced by networks."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from armillary.axes import Axis, Transfer, discover
from armillary.axes.stages.balance import stages_per_rank
from armillary.core.compute import deduplicated
from armillary.plan import habits
from armillary.plan.grid import Column, Grid
from armillary.plan.lanes import Lanes, Learnt
from armillary.plan.software import Software
from armillary.plan.traffic import Sent, sent_along
from armillary.spec import ModelGraph

Kind = tuple[str, str, str]
"""The axis, what is carried, and the phase that it can be hidden behind."""


@dataclass(frozen=True, slots=True)
class Messages:
    """Seconds of a step on one rank by kind, the bytes it sends, and how many messages.

    `rounds` is beside how many micro batches these are sent. All broadcast to the grid.
    """

    seconds: dict[Kind, Column]
    bytes: dict[Kind, Column]
    counts: dict[Kind, Column]
    rounds: dict[Kind, Column]


def price_messages(
    graph: ModelGraph, learnt: Learnt, software: Software, grid: Grid, global_batch_size: int
) -> Messages:
    """What every message of a step costs a rank, before anything is hidden; `graph` is folded.

    With a batch of 0 nothing is sent.
    """
    lanes = Lanes(learnt.fares, grid)
    times: dict[Kind, Any] = defaultdict(float)
    sizes: dict[Kind, Any] = defaultdict(float)
    counts: dict[Kind, Any] = defaultdict(float)
    rounds: dict[Kind, Any] = defaultdict(float)
    for name, axis in discover().items():
        if not global_batch_size or not (grid.degrees.get(name, np.ones(1)) > 1).any():
            continue
        known: dict[Any, Column] = {}
        for one in sent_by(axis, graph, software, grid, global_batch_size, learnt.reads):
            kind = (name, one.transfer.carries, one.transfer.hidden_behind)
            size = one.bytes * scale(one.transfer, graph, software, grid)
            size = size * share_sent(one.transfer, graph, software, lanes)
            sent = (one.transfer.collective, one.transfer.group, size.shape, size.tobytes())
            if sent not in known:  # the same may be sent in both passes
                known[sent] = lanes.seconds(one.transfer.collective, one.transfer.group, size)
            times[kind] = times[kind] + one.per_step * known[sent]
            sizes[kind] = sizes[kind] + one.per_step * size
            counts[kind] = counts[kind] + one.per_step
            rounds[kind] = np.maximum(rounds[kind], one.rounds)
    return Messages(dict(times), dict(sizes), dict(counts), dict(rounds))


def sent_by(
    axis: Axis,
    graph: ModelGraph,
    software: Software,
    grid: Grid,
    global_batch_size: int,
    reads: dict[str, set[str]],
) -> Iterator[Sent]:
    """What `axis` sends in a step as the program does; `graph` is folded, `reads` of `Learnt`."""
    told = _between_stages(software, grid) if axis.splits_module else grid
    if software.selective_keeps == "attention":  # what is repeated of a block sends nothing
        none = tuple("none" if r == "selective" else r for r in told.recomputes)
        told = replace(told, recomputes=none)
    is_left_out = software.deals == "with ends" and axis.splits_module
    rounds = grid.along("schedule", [float(stages_per_rank(s, n)) for s, n in grid.schedules])
    for one in sent_along(axis, habits.as_sent(graph, software), told, global_batch_size, reads):
        if is_left_out and one.transfer.carries == "activations":
            one = replace(one, per_step=one.per_step * rounds)
        yield one


def _between_stages(software: Software, grid: Grid) -> Grid:
    """`grid` as a program's stages send: each rank of a tensor group its own part, and what is
    before and after the blocks may be stages, which no cut of the blocks alone is: there a micro
    batch is told to go round the ranks once.
    """
    regions, schedules = grid.regions, grid.schedules
    if software.slices_sends:
        regions = tuple(("cut", loss) for _, loss in regions)
    if software.deals == "with ends":
        schedules = (("1f1b", "1"),) * len(schedules)
    return replace(grid, regions=regions, schedules=schedules)


def scale(told: Transfer, graph: ModelGraph, software: Software, grid: Grid) -> Column:
    """Bytes as sent for each byte as told, along the precisions of the grid."""
    stored = graph.parameter_bytes / max(graph.num_parameters, 1)
    least = 4 if told.is_wide and software.keeps_wide else 0
    ratio = {
        "activations": lambda p: max(activation_bytes(p), least) / graph.element_bytes,
        "parameters": lambda p: software.of(software.gathered_bytes, p) / stored,
        "gradients": lambda p: software.of(software.reduced_bytes, p) / stored,
        "counts": lambda p: 1.0,
    }[told.carries]
    return grid.along("precision", [float(ratio(p)) for p in grid.precisions])


def share_sent(transfer: Transfer, graph: ModelGraph, software: Software, lanes: Lanes) -> Column:
    """The share of the rows to routed experts that is sent, by row of the grid; 1 of all else.

    A program that sends a token once to each rank, or node, copies it there for its experts.

    Source: `core.compute.deduplicated`; DeepSeek-AI 2024, arXiv 2412.19437, section 3.2.2.
    """
    if not software.sends_once or transfer.carries != "activations":
        return np.ones(1)
    chosen = [routed.num_chosen for routed in graph.routed if routed.path == transfer.path]
    if not chosen or transfer.collective != "all_to_all_single":
        return np.ones(1)
    return deduplicated(chosen[0], lanes.places(transfer.group)) / chosen[0]


def activation_bytes(precision: str) -> int:
    """Bytes of an element that flows between modules: 16 bits where products take fewer."""
    return {"float64": 8, "float32": 4, "tf32": 4}.get(precision, 2)
