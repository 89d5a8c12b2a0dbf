"""What FSDP2 gathers and reduces as a whole: its bytes on a rank, and how often in a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from armillary.axes.regions.messages import is_cut
from armillary.axes.stages.balance import Stages, lay_out, stages_per_rank
from armillary.spec import ModelGraph
from armillary.spec.layouts import Layouts

# Shapes: G parameters outside the blocks, L layouts, W ways to cut a model into stages
Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Unit:
    """A block, routed experts, or under "" the rest of a module: a message of gradients each.

    `bytes` is the size of its parameters on a rank before they are sharded, `per_rank` how many of
    it a rank holds, on average over the ranks of a pipeline; both of shape [num_layouts].
    """

    path: str
    bytes: Column
    per_rank: Column


def dense_units(graph: ModelGraph, layouts: Layouts) -> list[Unit]:
    """The units whose parameters all ranks along the expert axis hold: where it cuts the experts,
    those without them.
    """
    cuts = layouts.degree("expert") > 1
    whole, dense = graph.unit_bytes, graph.dense_unit_bytes
    saved = _saved_by_tensor(graph, layouts)
    found = []
    for path in whole | dense:
        if path:
            size = np.where(cuts, dense.get(path, 0), whole.get(path, 0)).astype(np.float64)
            size -= sum(saved[p] for p in saved if f"{p}.".startswith(f"{path}."))
            found.append(Unit(path, size, (size > 0) / layouts.degree("pipeline")))
    return [*found, _rest(graph, layouts, saved)]


def expert_units(graph: ModelGraph, layouts: Layouts) -> list[Unit]:
    """The routed experts where the expert axis cuts them; elsewhere none of them are units."""
    degrees = layouts.degree("expert")
    per_rank = (degrees > 1) / layouts.degree("pipeline")
    return [Unit(r.path, r.parameter_bytes / degrees, per_rank) for r in graph.routed]


def _saved_by_tensor(graph: ModelGraph, layouts: Layouts) -> dict[str, Column]:
    """Bytes that a rank holds less of each parameter along the tensor axis, by path."""
    degrees = layouts.degree("tensor")
    saved: dict[tuple[int, str], Column] = {}  # the share, by all that it depends on
    found = {}
    for split in graph.splits:
        if split.parameter_bytes:
            alike = split.num_units, split.kind
            if alike not in saved:
                saved[alike] = np.where(is_cut(split, degrees), 1.0 - 1.0 / degrees, 0.0)
            found[split.path] = split.parameter_bytes * saved[alike]
    return found


def _rest(graph: ModelGraph, layouts: Layouts, saved: Mapping[str, Column]) -> Unit:
    """What is in no block: of a pipeline, that of every stage is a unit of its own."""
    blocks = tuple(f"{path}." for path in graph.unit_bytes if path)
    dense = graph.dense_unit_bytes.get("", 0)
    size = np.where(layouts.degree("expert") > 1, dense, graph.rest_bytes).astype(np.float64)
    size -= sum(saved[path] for path in saved if not f"{path}.".startswith(blocks))
    per_rank = (size > 0).astype(np.float64)
    glue = [one for one in graph.glue if not f"{one.path}.".startswith(blocks)]
    whole = np.zeros(layouts.num_layouts)
    sizes_GL = np.zeros((len(glue), layouts.num_layouts))
    for index, one in enumerate(glue):
        sizes_GL[index] = one.parameter_bytes - saved.get(one.path, whole)
    regions = tuple(one.regions for one in glue)
    way, ways = _pipelines(graph, layouts)
    if ways:
        found = [_copies(stages, regions) for stages in ways]
        copies_WG = np.array([copies for copies, _ in found], np.float64)
        copies_GW = copies_WG.reshape(len(ways), len(glue)).T
        num_units_W = np.array([number for _, number in found], np.float64)
        num_ranks_W = np.array([max(stages.ranks) + 1 for stages in ways], np.float64)
        rows = np.flatnonzero(way >= 0)
        of_row = way[rows]
        held = sum((c[of_row] * z[rows] for c, z in zip(copies_GW, sizes_GL, strict=True)), 0.0)
        size[rows] = held / np.maximum(num_units_W, 1.0)[of_row]
        per_rank[rows] = (num_units_W / num_ranks_W)[of_row]
    return Unit("", size, per_rank)


@lru_cache(maxsize=1024)  # a search asks of the same stages grid by grid
def _copies(stages: Stages, regions: tuple[tuple[int, ...], ...]) -> tuple[tuple[float, ...], int]:
    """In how many stages each parameter is, by the regions that use it, and how many have any."""
    held = [stages.holders(one) for one in regions]
    return tuple(float(len(one)) for one in held), len({stage for one in held for stage in one})


def _pipelines(graph: ModelGraph, layouts: Layouts) -> tuple[NDArray[np.int64], list[Stages]]:
    """By layout which of the ways it is to cut the model into stages, and these; -1 if in none."""
    degrees = layouts.degree("pipeline")
    way, ways = np.full(layouts.num_layouts, -1, dtype=np.int64), list[Stages]()
    left = np.flatnonzero(degrees > 1)
    schedules = layouts.option("pipeline.schedule", "1f1b")[left]
    options = layouts.option("pipeline.stages_per_rank", "auto")[left]
    while left.size:  # words are compared, not sorted: there are few, and sorting takes long
        schedule, option = schedules[0], options[0]
        other = (schedules != schedule) | (options != option)
        per_rank = stages_per_rank(str(schedule), str(option))
        rows = left[~other]
        number = np.full(int(degrees[rows].max()) + 1, -1, dtype=np.int64)
        for degree in np.flatnonzero(np.bincount(degrees[rows])):
            stages = lay_out(graph, int(degree), str(schedule), per_rank)
            if stages is not None:
                number[degree] = len(ways)
                ways.append(stages)
        way[rows] = number[degrees[rows]]
        left, schedules, options = left[other], schedules[other], options[other]
    return way, ways
