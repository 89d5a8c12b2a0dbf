"""Tuples of degrees: which there are for so many devices, and which of them an axis refuses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from armillary.axes import Axis, discover
from armillary.plan.folding import fold
from armillary.spec import Layout, ModelGraph, Refused, SpecError
from armillary.spec.layouts import Layouts

Degrees = dict[str, NDArray[np.int64]]
Count = NDArray[np.int64]

MOST_TRIED = 512
"""Degrees up to this one are all tried; beyond it, those that divide a size of the problem."""
ALWAYS_TRIED, FEWEST_POSITIONS = 8, 256
"""A sample is cut into so many parts at most, or into more that have so many positions each."""
MOST_UNEVEN = 1.1
"""Stages whose number divides no size are tried if the fullest has at most this of the mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of degrees, a column an axis, and what was refused of those that there might have been.

    `num_refused` counts the rows that one of the reasons refuses.
    """

    degrees: Degrees
    refused: tuple[Refused, ...] = ()
    num_refused: int = 0

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return length(self.degrees)

    @property
    def num_devices(self) -> Count:
        """The devices that each row uses: the product of its degrees."""
        return product(self.degrees)


@dataclass(kw_only=True, slots=True)
class Refusals:
    """Reasons with the number of rows that each refuses, and the first of them."""

    found: dict[tuple[str, str, str, str], Refused] = field(default_factory=dict)
    num_rows: int = 0

    def note(self, reason: SpecError, count: int, example: str) -> None:
        """Count `count` rows for `reason`."""
        key = (reason.where, reason.found, reason.rule, reason.fix)
        before = self.found.get(key)
        if before is not None:
            self.found[key] = replace(before, count=before.count + count)
        elif count:
            self.found[key] = Refused(count=count, example=example, **reason.to_dict())
        self.num_rows += count

    def told(self) -> tuple[Refused, ...]:
        """All reasons, the most frequent first."""
        return tuple(sorted(self.found.values(), key=lambda r: (-r.count, r.where, r.found)))


def find_rows(
    graph: ModelGraph,
    num_devices: int,
    global_batch_size: int,
    fixed: Mapping[str, int],
    *,
    fewer: bool = True,
    wide: bool = False,
) -> Rows:
    """All tuples of degrees that the axes admit, on `num_devices` or, with `fewer`, on fewer too.

    The ranks that split the batch divide it. Of degrees that divide neither the number of devices
    nor the batch, those up to a bound are tried, of stages those that share the blocks evenly.
    Unless `wide`, an axis that cuts samples leaves a rank so many positions that it is kept busy.
    """
    axes = discover()
    graph = fold(graph)
    refusals = Refusals()
    ranges = {
        n: [fixed[n]]
        if n in fixed
        else tried(axis, graph, num_devices, global_batch_size, fewer=fewer, wide=wide)
        for n, axis in axes.items()
    }
    refused = _refused_alone(graph, axes, ranges)
    ranges = {
        n: ranges[n] if n in fixed else _worth_telling(ranges[n], refused[n], num_devices)
        for n in axes
    }
    reasons = {
        n: {d: _reason(graph, axes[n], d) for d in ranges[n] if d in refused[n]} for n in axes
    }
    cutting = outer({n: ranges[n] for n, a in axes.items() if not a.splits_batch}, num_devices)
    splits = outer(
        {n: _with_one_refused(ranges[n], reasons[n]) for n, a in axes.items() if a.splits_batch},
        num_devices,
    )
    joined = _Joined(cutting, splits, num_devices, fewer=fewer)
    keep = np.ones(length(cutting), dtype=bool)
    for name in cutting:
        keep = _drop(cutting, name, reasons[name], keep, joined.weights, refusals)
    keep = _drop_joined(graph, axes, cutting, keep, joined.weights, refusals)
    degrees = joined.whole_rows(keep)
    keep, ones = np.ones(length(degrees), dtype=bool), np.ones(length(degrees), dtype=np.int64)
    for name in splits:
        keep = _drop(degrees, name, reasons[name], keep, ones, refusals)
    keep = _drop_uneven(degrees, list(splits), global_batch_size, keep, refusals)
    return Rows(
        degrees={n: degrees[n][keep] for n in axes},
        refused=refusals.told(),
        num_refused=refusals.num_rows,
    )


def length(degrees: Mapping[str, Count]) -> int:
    """The number of rows of the columns."""
    return len(next(iter(degrees.values())))


def product(degrees: Mapping[str, Count]) -> Count:
    """The product of the columns, row by row."""
    total = np.ones(length(degrees), dtype=np.int64)
    for column in degrees.values():
        total = total * column
    return total


def divisors(number: int) -> list[int]:
    """The divisors of `number`, in order."""
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def tried(
    axis: Axis, graph: ModelGraph, num_devices: int, batch: int, *, fewer: bool, wide: bool
) -> list[int]:
    """Degrees that are worth asking `axis` about, in order."""
    of_devices, of_batch = divisors(num_devices), divisors(batch)
    if not axis.splits_batch and not axis.shares_parameters and not wide:
        most = max(ALWAYS_TRIED, graph.positions.length // FEWEST_POSITIONS)
        of_devices = [d for d in of_devices if d <= most]
        num_devices = min(num_devices, most)
    if not fewer:
        return of_devices
    if axis.splits_batch:
        return [d for d in of_batch if d <= num_devices]
    found = set(of_devices) | set(range(1, min(num_devices, MOST_TRIED) + 1))
    if axis.splits_module:
        blocks = max(len(graph.chain), 1)
        even = {d for d in found if -(-blocks // d) * d <= MOST_UNEVEN * blocks}
        found = set(of_devices) | even
    return sorted(found)


def outer(ranges: Mapping[str, Sequence[int]], most: int) -> Degrees:
    """All tuples of the ranges whose product is at most `most`."""
    columns: Degrees = {}
    total = np.ones(1, dtype=np.int64)
    for name, values in ranges.items():
        options = np.asarray(values, dtype=np.int64)
        row, choice = np.nonzero(total[:, None] * options[None, :] <= most)
        columns = {n: column[row] for n, column in columns.items()} | {name: options[choice]}
        total = total[row] * options[choice]
    return columns


class _Joined:
    """Rows of what cuts the model, each with the ways to split the batch that find room beside it.

    The splits lie sorted by their ranks, so that those of a row are a run of them; `weights` are
    the lengths of the runs.
    """

    def __init__(self, cutting: Degrees, splits: Degrees, num_devices: int, *, fewer: bool) -> None:
        order = np.argsort(product(splits), kind="stable")
        self.cutting = cutting
        self.splits = {n: column[order] for n, column in splits.items()}
        ranks, inner = product(self.splits), product(cutting)
        room = num_devices // inner
        self.first = np.zeros(len(inner), dtype=np.int64)
        stop = np.searchsorted(ranks, room, side="right")
        if not fewer:
            self.first = np.searchsorted(ranks, room, side="left")
            stop = np.where(num_devices % inner == 0, stop, self.first)
        self.weights: Count = stop - self.first

    def whole_rows(self, keep: NDArray[np.bool_]) -> Degrees:
        """All columns, of the kept rows with each of their splits."""
        rows = np.flatnonzero(keep)
        times, first = self.weights[rows], self.first[rows]
        row = np.repeat(rows, times)
        begins = np.cumsum(times) - times
        split = np.arange(len(row)) - np.repeat(begins - first, times)
        return {n: column[row] for n, column in self.cutting.items()} | {
            n: column[split] for n, column in self.splits.items()
        }


def _refused_alone(
    graph: ModelGraph, axes: Mapping[str, Axis], ranges: Mapping[str, Sequence[int]]
) -> dict[str, set[int]]:
    """Which degrees each axis refuses alone.

    The first choice of every option is the one that asks least, so what is refused with it is
    refused with all.
    """
    found: dict[str, set[int]] = {}
    for name, axis in axes.items():
        degrees = np.asarray(ranges[name], dtype=np.int64)
        refused = np.zeros(len(degrees), dtype=bool)
        for refusal in axis.admits(graph, _table({name: degrees})):
            refused |= refusal.refused
        found[name] = set(degrees[refused].tolist())
    return found


def _reason(graph: ModelGraph, axis: Axis, degree: int) -> SpecError:
    """Why `axis` refuses `degree`, in its own words."""
    refusals = axis.admits(graph, _table({axis.name: np.array([degree], dtype=np.int64)}))
    return next(refusal.reason for refusal in refusals if refusal.refused.any())


def _table(degrees: Mapping[str, Count]) -> Layouts:
    ones = np.ones(length(degrees), dtype=np.int64)
    return Layouts(
        num_layouts=len(ones), degrees=degrees, options={}, num_samples=ones, num_micro_batches=ones
    )


def _worth_telling(values: Sequence[int], refused: set[int], num_devices: int) -> list[int]:
    """The degrees, of those that are refused only the ones that divide the number of devices."""
    return [d for d in values if d not in refused or num_devices % d == 0]


def _with_one_refused(values: Sequence[int], reasons: Mapping[int, SpecError]) -> list[int]:
    """The degrees without those that are refused, but for the least, which gives the reason."""
    kept = [d for d in values if d not in reasons]
    refused = [d for d in values if d in reasons]
    return sorted([*kept, *refused[:1]])


def _drop(
    rows: Degrees,
    name: str,
    reasons: Mapping[int, SpecError],
    keep: NDArray[np.bool_],
    weights: Count,
    refusals: Refusals,
) -> NDArray[np.bool_]:
    """`keep` without the rows whose degree the axis refuses, which are counted."""
    column = rows[name]
    refused = keep & np.isin(column, list(reasons))
    for degree in np.unique(column[refused]).tolist():
        there = refused & (column == degree)
        refusals.note(reasons[degree], int(weights[there].sum()), _in_words(rows, there))
    return keep & ~refused


def _drop_joined(
    graph: ModelGraph,
    axes: Mapping[str, Axis],
    rows: Degrees,
    keep: NDArray[np.bool_],
    weights: Count,
    refusals: Refusals,
) -> NDArray[np.bool_]:
    """`keep` without the rows that an axis refuses beside another one, which are counted."""
    several = np.sum([column > 1 for column in rows.values()], axis=0) > 1
    joined = np.flatnonzero(keep & several)
    if not len(joined):
        return keep
    table = _table({n: column[joined] for n, column in rows.items()})
    open_ = np.ones(len(joined), dtype=bool)
    for name in rows:
        for refusal in axes[name].admits(graph, table):
            new = refusal.refused & open_
            if new.any():
                count = int(weights[joined[new]].sum())
                refusals.note(refusal.reason, count, _in_words(dict(table.degrees), new))
            open_ &= ~refusal.refused
    keep = keep.copy()
    keep[joined] = open_
    return keep


def _drop_uneven(
    rows: Degrees,
    splitting: Sequence[str],
    batch: int,
    keep: NDArray[np.bool_],
    refusals: Refusals,
) -> NDArray[np.bool_]:
    """`keep` without the rows whose ranks do not divide the batch, which are counted."""
    ranks = product({n: rows[n] for n in splitting})
    uneven = keep & (batch % ranks != 0)
    if uneven.any():
        reason = SpecError(
            "layout",
            f"a number of ranks that split the batch does not divide its {batch} samples",
            "every rank takes equally many samples in a step (plan/rows.py)",
            "use a batch that more numbers divide, such as a multiple of a power of two",
        )
        refusals.note(reason, int(uneven.sum()), _in_words(rows, uneven))
    return keep & ~uneven


def _in_words(degrees: Mapping[str, Count], rows: NDArray[np.bool_]) -> str:
    """The first of `rows` in words."""
    row = int(np.flatnonzero(rows)[0])
    return str(Layout(degrees={n: int(column[row]) for n, column in degrees.items()}))
