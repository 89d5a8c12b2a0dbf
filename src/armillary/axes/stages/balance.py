"""Which blocks of a chain make a stage of a pipeline, and which rank holds it."""

# Shapes: E ends of a run of blocks, places where a part may end
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from armillary.spec import ModelGraph

V_SHAPED = ("zbv", "dualpipev")
ONE_STAGE = ("1f1b", "gpipe")
IMPOSSIBLE = np.iinfo(np.int64).max  # dearer than any run of blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """The stages of a pipeline: stage s holds the blocks from `bounds[s]` up to `bounds[s + 1]`.

    `ranks` says by stage at which coordinate of the pipeline axis it lies.
    """

    bounds: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def num_stages(self) -> int:
        """The number of stages of all ranks."""
        return len(self.ranks)

    def of_rank(self, rank: int) -> list[int]:
        """The stages that lie at coordinate `rank`, in order."""
        return [stage for stage, other in enumerate(self.ranks) if other == rank]

    def of_region(self, region: int) -> int:
        """The stage that computes what lies behind `region` blocks of the chain."""
        return min(bisect_left(self.bounds, region, lo=1), self.num_stages) - 1

    def holders(self, regions: Sequence[int]) -> list[int]:
        """The stages that use a parameter of these regions, in order."""
        return sorted({self.of_region(region) for region in regions})


def stages_per_rank(schedule: str, option: str) -> int:
    """How many stages a rank holds: what the option says, or 2 where the schedule takes several."""
    if option != "auto":
        return int(option)
    return 1 if schedule in ONE_STAGE else 2


def lay_out(graph: ModelGraph, degree: int, schedule: str, per_rank: int) -> Stages | None:
    """The stages of `graph` on `degree` ranks, balanced; None if it cannot be cut so often."""
    return _laid_out(*_line(_Same(graph)), degree, per_rank, schedule in V_SHAPED)


class _Same:
    """A graph that equals itself alone: a search asks of it thousands of times."""

    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph

    def __hash__(self) -> int:
        return id(self.graph)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.graph is self.graph


@lru_cache(maxsize=8)
def _line(one: _Same) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The costs of a graph's blocks, and where it may be cut."""
    return tuple(costs(one.graph)), tuple(cuts(one.graph))


@cache
def _laid_out(
    costs: tuple[int, ...], cuts: tuple[int, ...], degree: int, per_rank: int, is_v_shaped: bool
) -> Stages | None:
    bounds = divide(costs, cuts, degree * per_rank)
    if bounds is None:
        return None
    rounds = [list(range(degree)) for _ in range(per_rank)]
    if is_v_shaped:
        rounds = [ranks[::-1] if i % 2 else ranks for i, ranks in enumerate(rounds)]
    return Stages(bounds=bounds, ranks=tuple(rank for ranks in rounds for rank in ranks))


def cuts(graph: ModelGraph) -> list[int]:
    """Before which blocks of the chain it may be cut."""
    return [k for k, crossing in enumerate(graph.crossings) if crossing]


def costs(graph: ModelGraph) -> list[int]:
    """The cost of every block with what follows it, the first also with what comes before.

    It is in floating-point operations, or in parameters where none were counted.
    """
    flops = graph.chain_flops
    if len(flops) == len(graph.chain) + 1 and all(flops[1:]):
        return [flops[0] + flops[1], *flops[2:]]
    sizes = {block.path: block.num_parameters for block in graph.blocks}
    return [sizes.get(path, 1) for path in graph.chain]


def divide(costs: Sequence[int], cuts: Sequence[int], num_parts: int) -> tuple[int, ...] | None:
    """Bounds of `num_parts` runs of `costs`, cut only at `cuts`, the dearest as cheap as can be.

    Of equally good ones the later cuts come first; None if there are too few cuts.

    Example:
        >>> divide([1, 1, 1, 3], [1, 2, 3], 2)
        (0, 3, 4)
    """
    return _divided(tuple(costs), tuple(cuts), num_parts) if num_parts <= len(cuts) + 1 else None


@cache
def _divided(
    costs: tuple[int, ...], cuts: tuple[int, ...], num_parts: int
) -> tuple[int, ...] | None:
    """`divide`, from the division into one part less.

    Of every end it is known where the last part but one ends, how dear the dearest part is, and how
    the bounds rank among those of the other ends: 0 for those whose cuts come latest.
    """
    steps = _Steps.of(costs, cuts)
    while len(steps.starts) < num_parts:
        steps.lengthen()
    end, bounds = len(steps.ends) - 1, [len(costs)]
    if steps.dearest[num_parts - 1][end] == IMPOSSIBLE:
        return None
    for starts in reversed(steps.starts[1:num_parts]):
        end = int(starts[end])
        bounds.append(int(steps.ends[end]))
    return (0, *reversed(bounds))


@dataclass(slots=True)
class _Steps:
    """Divisions of all runs that begin the costs, into one part, two, and so on: E ends."""

    ends: NDArray[np.int64]
    totals: NDArray[np.int64]
    starts: list[NDArray[np.int64]]
    dearest: list[NDArray[np.int64]]
    ranks: NDArray[np.int64]

    @staticmethod
    @lru_cache(maxsize=8)  # a search asks of a few graphs, again and again for more parts
    def of(costs: tuple[int, ...], cuts: tuple[int, ...]) -> "_Steps":
        """The divisions into one part."""
        ends = np.array([*cuts, len(costs)], dtype=np.int64)
        totals = np.cumsum([0, *costs], dtype=np.int64)[ends]
        order = np.arange(len(ends))[::-1]  # (0, end): a later end comes first
        return _Steps(ends, totals, [np.zeros_like(ends)], [totals], order)

    def lengthen(self) -> None:
        """Add the divisions into one part more."""
        last_EE = self.totals[None, :] - self.totals[:, None]
        whole_EE = np.maximum(self.dearest[-1][:, None], last_EE)
        whole_EE[self.ends[:, None] >= self.ends[None, :]] = IMPOSSIBLE
        least_E = whole_EE.min(axis=0)
        best_EE = np.where(whole_EE == least_E, self.ranks[:, None], len(self.ends))
        starts_E = best_EE.argmin(axis=0)
        order = np.lexsort((-self.ends, self.ranks[starts_E]))
        self.ranks = np.empty_like(order)
        self.ranks[order] = np.arange(len(order))
        self.starts.append(starts_E)
        self.dearest.append(least_E)
