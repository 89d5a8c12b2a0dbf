"""Rows of degrees dealt to grids, each with the choices that its rows have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.plan.choices import MOST_MICRO_BATCH_SIZES, OPTIONS, Choices
from armillary.plan.grid import Grid
from armillary.plan.rows import Degrees, divisors, length

LARGEST_MICRO_BATCH = 64
WORTH_A_GRID = 20_000
"""Layouts that are priced in the time that a grid takes besides."""
ALIKE = 1.0 / 3.0
"""Numbers of samples of a rank whose logarithms, to base 8, round to one number share a grid."""


def placed(
    degrees: Degrees, orders: Sequence[tuple[str, ...]], ranks_inside: int
) -> tuple[Degrees, NDArray[np.int64], NDArray[np.int64]]:
    """The rows with each of the orders that lays their ranks otherwise, the order by row, and
    which of the rows each is.

    All orders are alike for rows that lie within the innermost unit, of `ranks_inside` ranks.
    """
    num_rows = length(degrees)
    marks = {name: np.int64((2 * place + 3) ** 7) for place, name in enumerate(sorted(degrees))}
    seen: list[NDArray[np.int64]] = []
    chosen = []
    for order in orders:
        stride, told = np.ones(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=np.int64)
        for name in reversed(order):
            told += np.where(degrees[name] > 1, stride * marks[name], 0)
            stride = stride * degrees[name]
        is_new = np.ones(num_rows, dtype=bool) if not seen else stride > ranks_inside
        for other in seen:
            is_new &= told != other
        seen.append(told)
        chosen.append(np.flatnonzero(is_new))
    rows = np.concatenate(chosen)
    index = np.repeat(np.arange(len(orders)), [len(c) for c in chosen])
    return {n: column[rows] for n, column in degrees.items()}, index, rows


def grids(
    degrees: Degrees,
    order: NDArray[np.int64],
    choices: Choices,
    global_batch_size: int,
    most: int,
    kept: NDArray[np.bool_],
) -> Iterator[tuple[Grid, NDArray[np.int64]]]:
    """Grids of at most about `most` layouts that hold all `kept` rows, and which rows each holds.

    Rows are told apart by which of the choices they have at all (a schedule needs a pipeline), and
    by how many samples a rank takes in a step, of which the micro batches are divisors; but not
    where that would leave out less than a grid of its own costs.
    """
    per_rank = np.full(len(order), global_batch_size, dtype=np.int64)
    for name, axis in discover().items():
        per_rank //= degrees[name] if axis.splits_batch else 1
    has = {dim: degrees[names[0].split(".")[0]] > 1 for dim, names in OPTIONS.items()}
    key = np.round(np.log2(np.maximum(per_rank, 1)) * ALIKE).astype(np.int64)
    key = _large_enough(key, kept, choices.num_choices * choices.most_micro_batch_sizes)
    told: list[str] = []
    for dim in sorted(has, key=lambda dim: -len(_values(choices, dim))):
        number, finer = len(_values(choices, dim)), 2 * key + has[dim]
        num_more = len(np.unique(finer[kept])) - len(np.unique(key[kept]))
        left_out = (~has[dim] & kept).sum() * choices.num_choices * (1.0 - 1.0 / number)
        if number > 1 and left_out > num_more * WORTH_A_GRID:
            key, told = finer, [*told, dim]
    for one in np.unique(key[kept]):
        rows = np.flatnonzero((key == one) & kept)
        some = _applying(choices, {d: bool(has[d][rows[0]]) for d in told})
        samples = np.unique(per_rank[rows]).tolist()
        sizes = some.micro_batch_sizes or micro_batches(samples, some.most_micro_batch_sizes)
        step = max(1, most // (some.num_choices * len(sizes)))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            yield _grid(degrees, order, part, some, sizes), part


def _large_enough(
    key: NDArray[np.int64], kept: NDArray[np.bool_], layouts_each: int
) -> NDArray[np.int64]:
    """The keys of rows, neighbours joined until each has layouts that are worth a grid."""
    found, first, total = key.copy(), 0, WORTH_A_GRID
    for value, count in zip(*np.unique(key[kept], return_counts=True), strict=True):
        if total >= WORTH_A_GRID:
            first, total = value, 0
        found[key == value] = first
        total += count * layouts_each
    return found


def _values(choices: Choices, dim: str) -> tuple[Any, ...]:
    """What may be chosen along a dim of options."""
    found: tuple[Any, ...] = getattr(choices, f"{dim}s")
    return found


def micro_batches(samples: Sequence[int], most: int = MOST_MICRO_BATCH_SIZES) -> tuple[int, ...]:
    """At most so many micro batch sizes, for ranks that take so many samples in a step.

    Sizes that divide all of `samples` come first, then those that divide some; small ones before
    large ones, and of many only powers of two, three times such, and all samples at once.
    """
    whole = {number for number in samples if number <= LARGEST_MICRO_BATCH}
    found = {d for number in samples for d in divisors(number) if d <= LARGEST_MICRO_BATCH}
    if len(found | whole) > most:
        found = {d for d in found if _is_plain(d)} | {1}
    common = [d for d in sorted(found) if all(number % d == 0 for number in samples)]
    rest = [d for d in sorted(found | whole) if d not in common]
    if len(common) > most:  # 1, the largest, and others at equal ratios between
        places = np.unique(np.linspace(0, len(common) - 1, most).round().astype(int))
        common = [common[place] for place in places]
    return tuple(sorted([*common, *rest[: most - len(common)]]))


def _is_plain(size: int) -> bool:
    """Whether a size is a power of two, or three times one."""
    odd = size // (size & -size)
    return odd in (1, 3)


def _applying(choices: Choices, has: Mapping[str, bool]) -> Choices:
    """The choices without those of dims that the rows have nothing for."""
    none = Choices(orders=choices.orders)
    left: dict[str, Any] = {
        f"{dim}s": _values(none, dim) for dim, is_there in has.items() if not is_there
    }
    return replace(choices, **left)


def _grid(
    degrees: Degrees,
    order: NDArray[np.int64],
    rows: NDArray[np.int64],
    choices: Choices,
    sizes: Sequence[int],
) -> Grid:
    return Grid(
        degrees={n: column[rows] for n, column in degrees.items()},
        orders=choices.orders,
        order=order[rows],
        micro_batch_sizes=np.asarray(sizes, dtype=np.int64),
        schedules=choices.schedules,
        recomputes=choices.recomputes,
        zeros=choices.zeros,
        regions=choices.regions,
        attentions=choices.attentions,
        precisions=choices.precisions,
        offloads=choices.offloads,
    )
