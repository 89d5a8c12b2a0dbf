"""The ranks of a layout that are worth a record each; every other does what one of them does."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from armillary.axes.differing import Class, classes
from armillary.rehearse.program.build import Case
from armillary.spec import Layout, Plan
from armillary.step.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Ranks that do the same: the first of them, how many there are, and what sets them apart.

    `load` is how many rows come to the experts of such a rank for each of an even share.
    """

    rank: int
    num_ranks: int
    reason: str = ""
    load: float = 1.0


def ranks_that_differ(
    recipe: Recipe, plan: Plan | Layout, *, global_batch_size: int = 0, busiest: float = 1.0
) -> tuple[Kind, ...]:
    """A rank for every kind there is in the plan's layout, that of rank 0 first.

    Stages of a pipeline differ, the last shards of a parameter, the edges of a grid, ranks with
    fewer samples, and, where `busiest` is above 1, one rank whose experts are chosen so often.

    Raises: `SpecError` if an axis refuses the model.
    """
    layout = plan.layout if isinstance(plan, Plan) else plan
    if isinstance(plan, Plan) and not global_batch_size:
        global_batch_size = plan.global_batch_size
    case = Case.of(recipe, layout, global_batch_size)
    graph = case.read()
    shapes = {path: tuple(p.shape) for path, p in case.build().named_parameters()}
    axes = {axis: degree for axis, degree in case.layout.degrees.items() if degree > 1}
    by_axis = [classes(axis, graph, case.layout, shapes) for axis in axes]
    kinds = [_kind(tuple(axes.values()), chosen) for chosen in product(*by_axis)]
    last = Case.of(recipe, layout, global_batch_size, layout.num_ranks - 1)
    others = []
    if sum(last.sizes) != sum(case.sizes):  # shares differ by a sample, and the last has the more
        others.append(Kind(rank=layout.num_ranks - 1, num_ranks=1, reason="a sample more"))
    if graph.routed and busiest > 1.0 and layout.num_ranks > 1:
        others.append(Kind(rank=0, num_ranks=1, reason="the busiest experts", load=busiest))
    first = replace(kinds[0], num_ranks=kinds[0].num_ranks - len(others))
    return (first, *kinds[1:], *others)


def _kind(degrees: Sequence[int], chosen: Iterable[Class]) -> Kind:
    chosen = list(chosen)
    rank = 0
    for degree, one in zip(degrees, chosen, strict=True):
        rank = rank * degree + one.coordinate
    reasons = [one.reason for one in chosen if one.reason]
    return Kind(
        rank=rank, num_ranks=prod(one.count for one in chosen), reason=", ".join(reasons) or "all"
    )
