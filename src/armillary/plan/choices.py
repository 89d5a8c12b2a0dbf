"""What may be chosen with a row of degrees, and the grids that rows and choices make."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.plan.grid import Grid
from armillary.plan.rows import Degrees, divisors, length
from armillary.spec import Layout, ModelGraph, SpecError
from armillary.spec.layout import RECOMPUTES

OPTIONS = {
    "schedule": ("pipeline.schedule", "pipeline.stages_per_rank"),
    "zero": ("sharded.zero",),
    "region": ("tensor.norms", "tensor.loss"),
    "attention": ("sequence.attention",),
}
"""The options of axes that a dim of the grid stands for."""
LARGEST_MICRO_BATCH = 64
FEW_SAMPLES = 16
"""Larger micro batches than this are tried only where they are all that a rank takes in a step."""
MOST_MICRO_BATCH_SIZES = 14
"""How many micro batch sizes are tried."""
SCOUTED = 2**18
"""Layouts that a first look may take."""
FEW = ((3, 6), (3, 4), (2, 4), (2, 3))
"""Ways of recomputing and micro batch sizes of a first look, from many to few."""
SEVERAL_STAGES, FEW_STAGES = ("interleaved_1f1b", "looped_bfs"), ("2", "6")
"""Schedules of several stages a rank that a first look tries, and with how many."""
WORTH_A_GRID = 8000
"""Layouts that are priced in the time that a grid takes besides."""
ALIKE = 1.0 / 3.0
"""Numbers of samples of a rank whose logarithms, to base 8, round to one number share a grid."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The choices along every dim of a grid but its rows.

    Without `micro_batch_sizes` they are found for the rows, at most so many.
    """

    schedules: tuple[tuple[str, str], ...] = (("1f1b", "auto"),)
    recomputes: tuple[str, ...] = ("none",)
    zeros: tuple[str, ...] = ("3",)
    regions: tuple[tuple[str, str], ...] = (("whole", "whole"),)
    attentions: tuple[str, ...] = ("ring",)
    precisions: tuple[str, ...] = ("float32",)
    offloads: tuple[str, ...] = ("none",)
    micro_batch_sizes: tuple[int, ...] = ()
    most_micro_batch_sizes: int = MOST_MICRO_BATCH_SIZES
    orders: tuple[tuple[str, ...], ...] = field(default_factory=lambda: orders_of(wide=False))

    def only(self, layouts: Sequence[Layout]) -> "Choices":
        """The choices that one of the layouts has made."""

        def said(dim: str, values: Sequence[Any]) -> tuple[Any, ...]:
            names = OPTIONS[dim]
            asked = [
                {n: layout.options.get(n) for n in names if n in layout.options}
                for layout in layouts
            ]
            kept = []
            for value in values:
                pair = dict(zip(names, [value] if len(names) == 1 else value, strict=True))
                if any(wanted and wanted.items() <= pair.items() for wanted in asked):
                    kept.append(value)
            return tuple(kept) or tuple(values[:1])

        return replace(
            self,
            schedules=said("schedule", self.schedules),
            zeros=said("zero", self.zeros),
            regions=said("region", self.regions),
            attentions=said("attention", self.attentions),
            recomputes=tuple(
                r for r in self.recomputes if r in {layout.recompute for layout in layouts}
            ),
        )

    @property
    def num_choices(self) -> int:
        """Layouts that a row has, at most, but for its micro batch and its placement."""
        dims = (self.schedules, self.recomputes, self.zeros, self.regions, self.attentions)
        total = len(self.precisions) * len(self.offloads)
        for one in dims:
            total *= len(one)
        return total


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What a person has settled: degrees of axes, and words of a layout or options by name."""

    degrees: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Fixed":
        """The words of `--fix`, such as `tensor=8,recompute=none,pipeline.schedule=1f1b`.

        Raises: `SpecError` on a word that no layout could have.
        """
        from armillary.axes import admit

        layout = Layout.parse(text)
        admit(layout)
        named = {word.partition("=")[0].strip() for word in text.split(",") if word.strip()}
        words = {n: str(getattr(layout, n)) for n in named if n in SETTINGS}
        if "compile" in named:
            raise SpecError(
                "--fix.compile",
                "a compiled model",
                "a plan prices the model as it runs eagerly (plan/choices.py)",
                "leave compile out, and give it to train beside the plan",
            )
        return cls(degrees=dict(layout.degrees), words=words | dict(layout.options))

    def keep(self, name: str, values: Sequence[str]) -> tuple[str, ...]:
        """The value that is settled for `name`, or all of `values` where none is."""
        return (self.words[name],) if name in self.words else tuple(values)


SETTINGS = ("micro_batch_size", "precision", "recompute")


def ends_in_cross_entropy(graph: ModelGraph) -> bool:
    """Whether the loss is a cross entropy over words, which can be taken of words that are cut."""
    return any("nll" in op.name for segment in graph.segments for op in segment.ops)


def all_choices(
    fixed: Fixed, precisions: Sequence[str], *, wide: bool, cuts_loss: bool = True
) -> Choices:
    """Every choice that makes sense, or, if `wide`, every one there is.

    Left out unless `wide` are schedules that do what another one does with more memory, and
    placements that are seldom better. The loss stays whole where nothing `cuts_loss`.
    """
    options = {
        f"{axis.name}.{name}": values
        for axis in discover().values()
        for name, values in axis.options.items()
    }

    def chosen(name: str) -> tuple[str, ...]:
        return fixed.keep(name, options[name])

    pairs = {
        dim: list(product(chosen(names[0]), chosen(names[1])))
        for dim, names in OPTIONS.items()
        if len(names) == 2
    }
    schedules = [pair for pair in pairs["schedule"] if _is_schedule(pair, fixed, wide=wide)]
    whole = options[OPTIONS["region"][1]][0]
    regions = [
        pair
        for pair in pairs["region"]
        if cuts_loss or pair[1] in (whole, fixed.words.get(OPTIONS["region"][1]))
    ]
    return Choices(
        schedules=tuple(schedules),
        recomputes=fixed.keep("recompute", RECOMPUTES),
        zeros=chosen(*OPTIONS["zero"]),
        regions=tuple(regions),
        attentions=chosen(*OPTIONS["attention"]),
        precisions=fixed.keep("precision", precisions),
        micro_batch_sizes=_settled_micro_batch(fixed),
        orders=orders_of(wide=wide),
    )


def few_choices(choices: Choices, num_rows: int = 0) -> Choices:
    """A few of the choices, by which rows are told apart before all are tried with the best.

    The fewer, the more rows there are.
    """
    for recomputes, num_sizes in FEW:
        few = _few_choices(choices, recomputes, num_sizes)
        if num_rows * few.num_choices * num_sizes <= SCOUTED:
            break
    return few


def _few_choices(choices: Choices, recomputes: int, num_sizes: int) -> Choices:

    def ends(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys((values[0], values[-1])))

    of_several = [s for s in choices.schedules if s[0] in SEVERAL_STAGES and s[1] in FEW_STAGES]
    schedules = tuple(dict.fromkeys([choices.schedules[0], *of_several]))
    return replace(
        choices,
        schedules=schedules,
        recomputes=choices.recomputes if recomputes > 2 else ends(choices.recomputes),
        zeros=ends(choices.zeros),
        regions=choices.regions[-1:],
        attentions=choices.attentions[:1],
        orders=choices.orders[:1],
        offloads=choices.offloads[:1],
        precisions=choices.precisions[:1],
        most_micro_batch_sizes=num_sizes,
    )


def _settled_micro_batch(fixed: Fixed) -> tuple[int, ...]:
    size = int(fixed.words.get("micro_batch_size", "0"))
    return (size,) if size else ()


REPEATED = ("gpipe",)
"""Schedules that another one (1f1b) beats in memory and has the same bubble as.

looped_bfs is none of them: unlike interleaved_1f1b it takes any number of micro batches.
"""


def _is_schedule(pair: tuple[str, ...], fixed: Fixed, *, wide: bool) -> bool:
    """Whether a schedule and its stages a rank go together, and are worth trying."""
    from armillary.axes.stages.balance import ONE_STAGE, V_SHAPED

    schedule, per_rank = pair
    settled = OPTIONS["schedule"][1] in fixed.words
    if schedule in (*ONE_STAGE, *V_SHAPED):
        goes = per_rank == "auto" or settled
    else:
        goes = per_rank not in ("auto", "1") or settled
    is_repeat = schedule in REPEATED and OPTIONS["schedule"][0] not in fixed.words
    return goes and (wide or not is_repeat)


def orders_of(*, wide: bool) -> tuple[tuple[str, ...], ...]:
    """Placements of the axes, the outermost first: their own order, and what may lie otherwise.

    Axes that split the batch keep their order among themselves, and so do those that cut a
    sample; what cuts the module goes outside, between or inside. With `wide` all such mixtures.
    """
    axes = sorted(discover().values(), key=lambda axis: axis.order)
    batch = [a.name for a in axes if a.splits_batch]
    module = [a.name for a in axes if a.splits_module]
    inside = [a.name for a in axes if not a.splits_batch and not a.splits_module]
    if wide:
        marks = sorted(set(permutations("b" * len(batch) + "m" * len(module) + "i" * len(inside))))
        mixed = [_dealt(m, {"b": batch, "m": module, "i": inside}) for m in marks]
        own = tuple(a.name for a in axes)
        return (own, *(order for order in mixed if order != own))
    replicas, rest = batch[:1], batch[1:]
    return tuple(
        dict.fromkeys(
            tuple(order)
            for order in (
                [*module, *batch, *inside],
                [*replicas, *module, *rest, *inside],
                [*batch, *module, *inside],
                [*module, *inside, *batch],
            )
        )
    )


def _dealt(marks: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The names of the groups in the order of the marks, each group in its own order."""
    left = {mark: list(names) for mark, names in groups.items()}
    return tuple(left[mark].pop(0) for mark in marks)


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
