"""Bytes of the fullest rank, by category."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.axes.stages.balance import stages_per_rank
from armillary.core import pipeline
from armillary.plan.grid import DIMS, Column, Grid
from armillary.plan.messages import activation_bytes
from armillary.plan.software import Software
from armillary.plan.stages import Dealt, Place
from armillary.plan.work import Parts
from armillary.spec import ModelGraph

NUM_GATHERED = 2.0
"""Units that lie gathered at once: the one that runs and the next, as torch's FSDP2 prefetches."""


def bytes_by_category(
    graph: ModelGraph, parts: Parts, dealt: Dealt, software: Software, grid: Grid, micro: Column
) -> "Fullest":
    """Bytes by category of the rank that holds most: the first of a pipeline, its second where
    there are several between the ends, or its last.
    """
    has_more = bool((dealt.middle.blocks > dealt.first.blocks).any())
    places = [(dealt.first, np.zeros(1)), (dealt.last, grid.stages - 1.0)]
    if has_more:
        is_there = (grid.stages > 2) * 1.0
        places.append(
            (replace(dealt.middle, blocks=dealt.middle.blocks * is_there), dealt.fuller_from)
        )
    ranks = [
        _of_rank(graph, parts, place, kept_at(rank, grid, micro), software, grid)
        for place, rank in places
    ]
    return Fullest.of(ranks)


class Fullest(Mapping[str, Column]):
    """Bytes by category of the fullest of some ranks, each found when it is asked for.

    `total` are those of all categories.
    """

    def __init__(
        self, ranks: Sequence[Mapping[str, Column]], number: NDArray[np.int8], total: Column
    ) -> None:
        self._ranks, self._number, self.total = ranks, number, total
        self._found: dict[str, Column] = {}

    @classmethod
    def of(cls, ranks: Sequence[tuple[dict[str, Column], Column]]) -> "Fullest":
        """The fullest of `ranks`, each with its total; of equally full ones the first."""
        total = ranks[0][1]
        number = np.zeros((1,) * total.ndim, dtype=np.int8)
        for index, (_, of_rank) in enumerate(ranks[1:], start=1):
            number = np.where(of_rank > total, np.int8(index), number)
            total = np.maximum(total, of_rank)
        return cls([found for found, _ in ranks], number, total)

    def __getitem__(self, name: str) -> Column:
        if name not in self._found:
            found = self._ranks[0][name]
            for index, rank in enumerate(self._ranks[1:], start=1):
                found = np.where(self._number == index, rank[name], found)
            self._found[name] = found
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranks[0])

    def __len__(self) -> int:
        return len(self._ranks[0])


def _total(memory: Mapping[str, Column]) -> Column:
    small_first = sorted(memory.values(), key=lambda column: column.size)
    return np.asarray(sum(small_first[1:], small_first[0]))


def _of_rank(
    graph: ModelGraph, parts: Parts, place: Place, kept: Column, software: Software, grid: Grid
) -> tuple[dict[str, Column], Column]:
    """Bytes where the backward pass begins, and their sum: at the loss, or in the last block, which
    may first be computed again. What the loss needs is given back before.
    """
    saved, again = _saved(graph, parts, grid)
    of_loss = place.after * (parts.after.saved_bytes + parts.after.workspace_bytes)
    of_block = again + parts.block.workspace_bytes
    found = _states(graph, place, parts, software, grid) | {
        "activations": kept * place.blocks * saved,
        "ends": place.before * parts.before.saved_bytes * kept,
        "workspace": np.maximum(of_loss, of_block),
    }
    total = _total(found)
    found["fragments"] = total * software.fragmentation
    found["overhead"] = grid.along("degrees", [software.overhead_bytes])
    return found, total * (1.0 + software.fragmentation) + software.overhead_bytes


def _states(
    graph: ModelGraph, place: Place, parts: Parts, software: Software, grid: Grid
) -> dict[str, Column]:
    """Parameters, gradients and optimiser states, as the axes divide what a rank holds."""
    parameters, gradients, states = _shares(graph, grid)
    alike, experts = _shared_along(software, grid)

    def held(name: str) -> Column:
        of_blocks = place.blocks / max(parts.num_blocks, 1) * getattr(parts.blocks, name)
        ends = place.before * getattr(parts.before, name) + place.after * getattr(parts.after, name)
        return np.asarray(of_blocks + ends)

    def each(sizes: Any) -> Column:
        return grid.along("precision", [software.of(sizes, p) for p in grid.precisions])

    whole = held("num_parameters")
    least_zero = grid.along("zero", [float(z) for z in grid.zeros])

    def cut_from(stage: int) -> Column:
        """Parameters of which a rank has the states that are cut from this stage on."""
        if not software.shards_along:
            return whole
        routed = held("num_expert_parameters")
        cut = (whole - routed) * alike + routed * experts
        return np.where(least_zero >= stage, cut, whole)

    is_cut = (parameters * alike < 1) & (least_zero >= 3)
    trained = float(software.trains_weights)
    return {
        "parameters": cut_from(3) * parameters * each(software.parameter_bytes),
        "gradients": cut_from(2) * gradients * each(software.gradient_bytes) * trained,
        "optimiser": cut_from(1) * states * each(software.optimizer_bytes) * trained,
        "gathered": parts.block.num_parameters
        * NUM_GATHERED
        * is_cut
        * each(software.gathered_bytes),
    }


def _shares(graph: ModelGraph, grid: Grid) -> tuple[Column, ...]:
    """What is left of parameters, gradients and states by the axes that shard them."""
    table, shape = grid.table(("degrees", "zero"), 1)
    shares = {"parameters": 1.0, "gradients": 1.0, "optimizer_state": 1.0}
    for axis in discover().values():
        if axis.splits_batch and not any(
            axis.computes(op, table) is not None for segment in graph.segments for op in segment.ops
        ):
            own = axis.divides(graph, table)
            shares = {name: share * getattr(own, name) for name, share in shares.items()}
    return tuple(np.reshape(share, shape) for share in shares.values())


def _shared_along(software: Software, grid: Grid) -> tuple[Column, Column]:
    """What is left of the states of most parameters, and of the experts', where a program shards
    them over more of the ranks that hold the same.
    """
    alike = experts = np.ones((1,) * len(DIMS))
    for name in software.shards_along:
        share = 1.0 / grid.degree(name)
        alike = alike * share
        if not discover()[name].splits_batch:  # else the ranks along it have other experts
            experts = experts * share
    return alike, experts


def kept_at(rank: Any, grid: Grid, micro: Column) -> Column:
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
