"""Which blocks of a chain make a stage of a pipeline, and which rank holds it."""

from collections.abc import Sequence
from dataclasses import dataclass

from armillary.spec import ModelGraph

V_SHAPED = ("zbv", "dualpipev")
ONE_STAGE = ("1f1b", "gpipe")


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
        return next(s for s in range(self.num_stages) if region <= self.bounds[s + 1])

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
    num_stages = degree * per_rank
    bounds = divide(costs(graph), cuts(graph), num_stages)
    if bounds is None:
        return None
    rounds = [list(range(degree)) for _ in range(per_rank)]
    if schedule in V_SHAPED:
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
    ends = [*cuts, len(costs)]
    totals = [0]
    for cost in costs:
        totals.append(totals[-1] + cost)
    best: dict[int, tuple[int, tuple[int, ...]]] = {end: (totals[end], (0, end)) for end in ends}
    for _ in range(num_parts - 1):
        longer = {}
        for end in ends:
            options = [
                (max(dearest, totals[end] - totals[start]), bounds)
                for start, (dearest, bounds) in best.items()
                if start < end
            ]
            if options:
                dearest, bounds = min(options, key=lambda option: (option[0], _negated(option[1])))
                longer[end] = dearest, (*bounds, end)
        best = longer
    return best[len(costs)][1] if len(costs) in best else None


def _negated(bounds: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-bound for bound in bounds)
