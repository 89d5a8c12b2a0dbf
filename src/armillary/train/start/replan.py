"""A layout for other ranks than it was made for: some are lost, or more have come."""

import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import replace

from armillary.axes import discover
from armillary.spec import Layout, SpecError
from armillary.train.folder.run_folder import RunFolder
from armillary.train.request import TrainRequest
from armillary.train.start.admission import admit_before_ranks

NUM_TRIED = 64


def replanned(request: TrainRequest, num_ranks: int) -> TrainRequest:
    """The request on at most `num_ranks` ranks of another layout, said aloud.

    First come the plan's own candidates for that number; then what `candidates` gives. The first
    that every axis admits is taken; under a launcher it uses every rank.

    Raises: `SpecError` if there is none.
    """
    for layout in itertools.islice(_in_turn(request, num_ranks), NUM_TRIED):
        changed = replace(request, layout=layout)
        try:
            admit_before_ranks(changed, as_named=False)
        except SpecError:
            continue
        if not request.quiet:
            sys.stderr.write(f"{layout} on {num_ranks} ranks, instead of {request.layout}\n")
        return changed
    raise SpecError(
        "layout",
        f"{request.layout} on {num_ranks} ranks",
        "a layout is scaled along the axes that split the batch, then along the others",
        "name one with --layout",
    )


def _in_turn(request: TrainRequest, num_ranks: int) -> Iterator[Layout]:
    plan = request.plan
    if plan is None and request.run_path is not None:
        plan = RunFolder(request.run_path).plan
    if plan is not None:
        found = [plan.best, *plan.runners_up, *plan.frontier]
        yield from (c.layout for c in found if c.layout.num_ranks == num_ranks)
    yield from candidates(request.layout, num_ranks)


def candidates(layout: Layout, num_ranks: int) -> Iterator[Layout]:
    """Layouts of exactly `num_ranks` ranks, those that change least first.

    The axes that cut the model keep their degrees if they can: a rank's memory was made for them.
    The others share what is left, and among them those that share parameters come first. A layout
    without degrees takes the outermost axis that splits the batch.
    """
    axes = discover()
    names = [name for name, degree in layout.degrees.items() if degree > 1]
    if not any(axes[name].splits_batch and not axes[name].borrows for name in names):
        names = [_outermost(), *names]
    names = [*dict.fromkeys(names)]

    def change(degrees: tuple[int, ...]) -> tuple[float, ...]:
        logs = {
            name: abs(math.log2(degree / layout.degree(name)))
            for name, degree in zip(names, degrees, strict=True)
        }
        cut = [logs[name] for name in names if not axes[name].splits_batch]
        kept = [logs[name] for name in names if axes[name].shares_parameters]
        return sum(cut), sum(kept), sum(logs.values())

    for degrees in sorted(_products(num_ranks, len(names)), key=change):
        kept = {n: d for n, d in zip(names, degrees, strict=True) if d > 1}
        yield replace(layout, degrees=kept, options=_options(layout, kept))


def _outermost() -> str:
    """The outermost axis that splits the batch and leaves the model whole."""
    found = [a for a in discover().values() if a.splits_batch and not a.shares_parameters]
    return min(found, key=lambda axis: axis.order).name


def _options(layout: Layout, degrees: dict[str, int]) -> dict[str, str]:
    """The options of the axes that are left."""
    return {
        name: value
        for name, value in layout.options.items()
        if name.partition(".")[0] in degrees or layout.degree(name.partition(".")[0]) == 1
    }


def _products(total: int, num_factors: int) -> Iterator[tuple[int, ...]]:
    """All tuples of `num_factors` positive integers whose product is `total`."""
    if num_factors == 1:
        yield (total,)
        return
    for first in range(1, total + 1):
        if total % first == 0:
            yield from ((first, *rest) for rest in _products(total // first, num_factors - 1))
