"""Bytes of the fullest rank, by category."""

from typing import Any

import numpy as np

from armillary.axes import discover
from armillary.axes.stages.balance import stages_per_rank
from armillary.core import pipeline
from armillary.plan.grid import DIMS, Column, Grid
from armillary.plan.messages import activation_bytes
from armillary.plan.software import Software
from armillary.plan.stages import Dealt
from armillary.plan.work import Parts
from armillary.spec import ModelGraph

NUM_GATHERED = 2.0
"""Units that lie gathered at once: the one that runs and the next, as torch's FSDP2 prefetches."""


def bytes_by_category(
    graph: ModelGraph, parts: Parts, dealt: Dealt, software: Software, grid: Grid, micro: Column
) -> dict[str, Column]:
    """Bytes by category of the rank that holds most: the first of a pipeline, its last, or the
    second where that has more blocks than the first.
    """
    places = ["first", "last"] + ["second"] * bool((dealt.middle > dealt.first).any())
    ranks = [_of_rank(graph, parts, dealt, software, grid, micro, place) for place in places]
    fullest = ranks[0]
    for rank in ranks[1:]:
        is_fuller = _total(rank) > _total(fullest)
        fullest = {name: np.where(is_fuller, rank[name], fullest[name]) for name in fullest}
    return fullest


def _total(memory: dict[str, Column]) -> Column:
    small_first = sorted(memory.values(), key=lambda column: column.size)
    return np.asarray(sum(small_first[1:], small_first[0]))


def _of_rank(
    graph: ModelGraph,
    parts: Parts,
    dealt: Dealt,
    software: Software,
    grid: Grid,
    micro: Column,
    place: str,
) -> dict[str, Column]:
    alone = (grid.stages == 1) * 1.0
    blocks, before, after = {
        "first": (dealt.first, 1.0, alone),
        "second": (dealt.middle * (grid.stages > 2), 0.0, 0.0),
        "last": (dealt.last, alone, 1.0),
    }[place]
    held = blocks / max(parts.num_blocks, 1) * parts.blocks.num_parameters
    held = held + before * parts.before.num_parameters + after * parts.after.num_parameters
    kept = np.minimum(micro, dealt.per_rank)
    if place != "last":
        kept = kept_at(0.0 if place == "first" else 1.0, grid, micro)
    saved, again = _saved(graph, parts, grid)
    ends = before * parts.before.saved_bytes * kept + after * parts.after.saved_bytes
    workspace = np.maximum(parts.block.workspace_bytes, after * parts.after.workspace_bytes)
    found = _states(graph, held, parts, software, grid) | {
        "activations": kept * blocks * saved + again,
        "ends": ends,
        "workspace": workspace,
    }
    total = _total(found)
    found["fragments"] = total * software.fragmentation
    found["overhead"] = grid.along("degrees", [software.overhead_bytes])
    return found


def _states(
    graph: ModelGraph, held: Column, parts: Parts, software: Software, grid: Grid
) -> dict[str, Column]:
    """Parameters, gradients and optimiser states, as the axes divide what a rank holds."""
    table, shape = grid.table(("degrees", "zero"), 1)
    shares = {"parameters": 1.0, "gradients": 1.0, "optimizer_state": 1.0}
    for axis in discover().values():
        if axis.splits_batch and not any(
            axis.computes(op, table) is not None for segment in graph.segments for op in segment.ops
        ):
            own = axis.divides(graph, table)
            shares = {name: share * getattr(own, name) for name, share in shares.items()}
    parameters, gradients, states = (np.reshape(share, shape) for share in shares.values())

    def each(sizes: Any) -> Column:
        return grid.along("precision", [software.of(sizes, p) for p in grid.precisions])

    gathered = parts.block.num_parameters * NUM_GATHERED * (parameters < 1)
    return {
        "parameters": held * parameters * each(software.parameter_bytes),
        "gradients": held * gradients * each(software.gradient_bytes),
        "optimiser": held * states * each(software.optimizer_bytes),
        "gathered": gathered * each(software.gathered_bytes),
    }


def kept_at(rank: float, grid: Grid, micro: Column) -> Column:
    """Micro batches that a rank of a pipeline keeps at once, along the schedules."""
    columns = [
        pipeline.kept_micro_batches(
            name, grid.stages, float(stages_per_rank(name, number)), micro, rank
        )
        for name, number in grid.schedules
    ]
    shape = np.broadcast_shapes(*(column.shape for column in columns), micro.shape)
    spread = [np.broadcast_to(column, shape) for column in columns]
    kept = np.concatenate(spread, axis=DIMS.index("schedule"))
    return np.where(grid.stages > 1, kept, 1.0)


def _saved(graph: ModelGraph, parts: Parts, grid: Grid) -> tuple[Column, Column]:
    """Bytes that a block keeps, along the choices of recomputing, and what one needs besides
    while it is computed again.
    """
    number = max(parts.num_blocks, 1)
    whole = parts.blocks.saved_bytes / number
    some = parts.blocks.selective_bytes / number
    entry = _entry(graph, parts, grid)
    keeps = {"none": whole, "selective": some + entry, "full": entry + 0.0 * whole}
    again = {"none": 0.0 * whole, "selective": whole - some, "full": whole}
    axis = DIMS.index("recompute")
    return tuple(  # type: ignore[return-value]
        np.concatenate(np.broadcast_arrays(*[by[r] for r in grid.recomputes]), axis=axis)
        for by in (keeps, again)
    )


def _entry(graph: ModelGraph, parts: Parts, grid: Grid) -> Column:
    """Bytes of what a block takes in."""
    size = max(graph.crossing_bytes, default=0) or max(
        (block.activation_bytes for block in graph.blocks), default=0
    )
    samples = grid.along("micro_batch_size", grid.micro_batch_sizes)
    width = grid.along("precision", [activation_bytes(p) for p in grid.precisions])
    share = parts.entry_share
    return np.asarray(size * samples * width / graph.element_bytes * share)
