"""What may be chosen with a row of degrees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Any

from armillary.axes import discover
from armillary.axes.stages.balance import ONE_STAGE, V_SHAPED
from armillary.spec import Layout, ModelGraph, SpecError
from armillary.spec.layout import RECOMPUTES

OPTIONS = {
    "schedule": ("pipeline.schedule", "pipeline.stages_per_rank"),
    "zero": ("sharded.zero",),
    "region": ("tensor.norms", "tensor.loss"),
    "attention": ("sequence.attention",),
}
"""The options of axes that a dim of the grid stands for."""
MOST_MICRO_BATCH_SIZES = 14
"""How many micro batch sizes are tried."""
SCOUTED = 2**18
"""Layouts that a first look may take."""
FEW = ((3, 6), (3, 4), (2, 4), (2, 3))
"""Ways of recomputing and micro batch sizes of a first look, from many to few."""
SEVERAL_STAGES, FEW_STAGES = ("interleaved_1f1b", "looped_bfs"), ("2", "6")
"""Schedules of several stages a rank that a first look tries, and with how many."""


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
            micro_batch_sizes=tuple(sorted({layout.micro_batch_size for layout in layouts})),
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

    Left out unless `wide` are placements that are seldom better. The loss stays whole where nothing
    `cuts_loss`.
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
    schedules = [pair for pair in pairs["schedule"] if _is_schedule(pair, fixed)]
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
    of_one = [s for s in choices.schedules if s[0] in ONE_STAGE]
    schedules = tuple(dict.fromkeys([choices.schedules[0], *of_one, *of_several]))
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


def _is_schedule(pair: tuple[str, ...], fixed: Fixed) -> bool:
    """Whether a schedule and its stages a rank go together, and are worth trying.

    None is left out: 1f1b beats gpipe in memory and interleaved_1f1b looped_bfs, but gpipe and
    looped_bfs take any number of micro batches.
    """
    schedule, per_rank = pair
    settled = OPTIONS["schedule"][1] in fixed.words
    if schedule in (*ONE_STAGE, *V_SHAPED):
        return per_rank == "auto" or settled
    return per_rank not in ("auto", "1") or settled


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
