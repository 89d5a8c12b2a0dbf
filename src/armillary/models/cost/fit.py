"""Events of one step at two numbers of samples, as ops whose sizes are those of one sample."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from armillary.models.cost.event import SIZES, Event, Product
from armillary.spec import ModelGraph, Op, Segment, SpecError

CONSTANTS = {
    "constant_flops": ("flops",),
    "constant_bytes": ("read_bytes", "written_bytes"),
    "constant_saved_bytes": ("saved_bytes",),
}


@dataclass(frozen=True, slots=True)
class Run:
    """The events of a step with so many samples, and which blocks were alike."""

    num_samples: int
    events: Sequence[Event]
    groups: Sequence[Sequence[str]] = field(default_factory=list)


def segments_of(small: Run, large: Run, graph: ModelGraph) -> tuple[Segment, ...]:
    """The ops of both runs, per sample, as segments in the order of the forward pass.

    Raises: `SpecError` where the two runs are not the same ops.
    """
    _check_alike(small, large)
    fitted = _Fitter(small.num_samples, large.num_samples, graph)
    paths = {group[0]: tuple(group) for group in small.groups}
    order: dict[tuple[str, int], list[Op]] = {}
    for one, two in zip(_merged(small.events), _merged(large.events), strict=True):
        after = one.after - 1 if one.block else one.after
        op = fitted.op(one, two)
        if op is not None:
            order.setdefault((one.block, after), []).append(op)
    found = [
        Segment(
            path=block,
            repeats=max(len(paths.get(block, ())), 1),
            ops=tuple(_folded(ops)),
            paths=paths.get(block, ()),
            after=after,
        )
        for (block, after), ops in order.items()
    ]
    return tuple(_joined(found, [block.path for block in graph.blocks]))


def _joined(segments: Sequence[Segment], blocks: Sequence[str]) -> list[Segment]:
    """Segments with those of blocks that turned out to run the same as one."""
    found: dict[Any, Segment] = {}
    for place, segment in enumerate(segments):
        own = len(segment.path)
        ops = tuple(replace(op, path=op.path[own:]) for op in segment.ops)
        key = ops if segment.path else place
        first = found.get(key)
        if first is None:
            found[key] = segment
            continue
        paths = sorted(first.paths + segment.paths, key=blocks.index)
        found[key] = replace(first, repeats=first.repeats + segment.repeats, paths=tuple(paths))
    return list(found.values())


def _check_alike(small: Run, large: Run) -> None:
    names = [[(event.path, event.name) for event in run.events] for run in (small, large)]
    if names[0] != names[1]:
        differing = next(
            (one for one, two in zip(*names, strict=False) if one != two), ("the model", "its end")
        )
        raise SpecError(
            f"model.{differing[0] or 'loss'}",
            f"{differing[1]} does not run alike with {small.num_samples} and "
            f"{large.num_samples} samples",
            "what a model runs does not depend on the number of samples (models/tracing.py)",
            "give a batch with the samples along dim 0 of its tensors, or the larger as `double`",
        )


def _merged(events: Iterable[Event]) -> Iterable[Event]:
    """Events with the equal ops of all experts of a module as one."""
    kept: dict[tuple[Any, ...], Event] = {}
    found: list[Event] = []
    for event in events:
        weights = frozenset(label.partition("@")[0] for label in event.weights)
        key = (event.path, event.name, event.block, _shape(event.product), weights)
        if not event.experts:
            found.append(event)
        elif key not in kept:
            kept[key] = replace(event, sizes=dict(event.sizes), weights=dict(event.weights))
            found.append(kept[key])
        else:
            _take(kept[key], event)
    return found


def _shape(product: Product | None) -> tuple[int, int] | None:
    return None if product is None else (product.columns, product.inner)


def _take(event: Event, other: Event) -> None:
    for size, amount in other.sizes.items():
        event.add(size, amount)
    event.weights |= other.weights
    event.num_kernels += other.num_kernels
    event.num_backward_kernels += other.num_backward_kernels
    if event.product is not None and other.product is not None:
        mine, its = event.product, other.product
        event.product = replace(mine, batch=mine.batch + its.batch, rows=mine.rows + its.rows)


class _Fitter:
    """Ops from pairs of events; knows which parameters were met before."""

    def __init__(self, small: int, large: int, graph: ModelGraph) -> None:
        self.small, self.large = small, large
        self.length = graph.positions.length
        self.held: set[str] = set()

    def line(self, one: int, two: int) -> tuple[int, int]:
        """What is there for each sample, and what once a call."""
        each = max(round((two - one) / (self.large - self.small)), 0)
        return each, max(one - each * self.small, 0)

    def op(self, one: Event, two: Event) -> Op | None:
        """The op of an event; None where nothing is computed, moved or kept."""
        lines = {size: self.line(one.sizes[size], two.sizes[size]) for size in SIZES}
        values: dict[str, Any] = {size: line[0] for size, line in lines.items()}
        for name, sizes in CONSTANTS.items():
            values[name] = sum(lines[size][1] for size in sizes)
        labels = one.weights.keys()
        if not any(values.values()) and not labels:
            return None
        values["workspace_bytes"] = values["written_bytes"] + values["backward_written_bytes"]
        values["shares_parameters"] = bool(labels) and labels <= self.held
        self.held |= labels
        per_sample = one.positions // self.small
        attention: Mapping[str, Any] = one.attention
        if attention:
            attention = {**attention, "causal": bool(attention["causal"])}
        return Op(
            path=one.path,
            kind=one.kind,
            name=one.name,
            parameter_bytes=sum(one.weights.values()),
            num_kernels=one.num_kernels,
            num_backward_kernels=one.num_backward_kernels,
            steps=one.steps,
            cut=one.cut,
            experts=one.experts,
            tokens=bool(self.length) and per_sample > 0 and per_sample % self.length == 0,
            **self._dims(one, two),
            **attention,
            **values,
        )

    def _dims(self, one: Event, two: Event) -> dict[str, Any]:
        """The product's sizes, with its rows or its batch as those of a sample."""
        small, large = one.product, two.product
        if small is None or large is None:
            return {}
        rows: float = small.rows
        sizes = {"columns": small.columns, "inner": small.inner, "batch": small.batch}
        if one.experts:
            return {"rows": rows / small.batch / self.small, **sizes}
        if large.batch > small.batch:
            return {
                "rows": rows,
                **sizes,
                "batch": max(small.batch // self.small, 1),
                "batch_is_samples": True,
            }
        if large.columns > small.columns and large.rows == small.rows:
            return {**sizes, "rows": small.columns / self.small, "columns": small.rows}
        return {"rows": rows / self.small if large.rows > small.rows else rows, **sizes}


def _folded(ops: Sequence[Op]) -> list[Op]:
    """Equal ops of a module as one, and all that is there once a call as one."""
    found: dict[tuple[Any, ...], Op] = {}
    counts: dict[tuple[Any, ...], int] = {}
    once: list[Op] = []
    for op in ops:
        if op.parameter_bytes or any(getattr(op, size) for size in SIZES):
            key = tuple(getattr(op, f.name) for f in fields(op))
            found.setdefault(key, op)
            counts[key] = counts.get(key, 0) + 1
        else:
            once.append(op)
    folded = [replace(op, count=counts[key]) for key, op in found.items()]
    return [*folded, *([_summed(once)] if once else [])]


def _summed(once: Sequence[Op]) -> Op:
    """Ops that do not grow with the samples, as one."""
    sums = {name: sum(getattr(op, name) for op in once) for name in CONSTANTS}
    return Op(
        path=once[0].path,
        kind="stream",
        name="constants",
        num_kernels=sum(op.num_kernels for op in once),
        num_backward_kernels=sum(op.num_backward_kernels for op in once),
        **sums,
    )
