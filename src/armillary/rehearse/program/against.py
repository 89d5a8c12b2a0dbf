"""Records held against what the axes tell of the same layout: what is held, and what is sent.

The axes tell of an average over the ranks, so the records of all kinds of ranks are taken together,
each as often as it stands for a rank.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import prod

from armillary.axes import discover
from armillary.rehearse.program.build import Case
from armillary.spec import ModelGraph, SpecError
from armillary.spec.layouts import Layouts
from armillary.spec.record import Difference, Record
from armillary.step.recipe import Recipe

TOLERANCE = 0.01
ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
HELD = {"parameters": "parameters", "optimiser": "optimizer_state"}
Key = tuple[str, tuple[str, ...]]
By = dict[str, tuple[float, float]]
"""Messages and their bytes, by the block that sends them."""


def differences(
    recipe: Recipe, records: Sequence[Record], *, tolerance: float = TOLERANCE
) -> tuple[Difference, ...]:
    """Where `records`, which stand for all ranks of a layout, are not as the axes tell.

    Numbers of messages are to be equal, bytes within `tolerance`. Of optimiser states it is not
    told how many there are: they are held against a whole number of times the parameters.

    Raises: `SpecError` if the records are not of all ranks of one layout.
    """
    first = records[0]
    _check_whole(records)
    case = Case.of(recipe, first.layout, first.global_batch_size)
    graph = case.read()
    num_micro_batches = first.num_micro_batches
    table = Layouts.of(
        case.layout,
        num_samples=max(1, first.global_batch_size // num_micro_batches),
        num_micro_batches=num_micro_batches,
    )
    sent = _recorded(records, graph)
    told = _told(graph, table, case)
    found = [*_held(records, graph, table, tolerance)]
    for key in sorted(sent.keys() | told.keys()):
        found += _of_kind(key, sent.get(key, {}), told.get(key, {}), tolerance)
    return tuple(found)


def _check_whole(records: Sequence[Record]) -> None:
    total = sum(record.num_stands_for for record in records)
    layouts = {str(record.layout) for record in records}
    if len(layouts) > 1 or total != records[0].num_ranks:
        raise SpecError(
            "records",
            f"of {total} ranks of {records[0].num_ranks}, on {', '.join(sorted(layouts))}",
            "what the axes tell is of all ranks of a layout (rehearse/program/against.py)",
            "record a rank of every kind (`ranks_that_differ`), with `num_stands_for` set",
        )


# -------------------------------------------------------------------------------------- held
def _held(
    records: Sequence[Record], graph: ModelGraph, table: Layouts, tolerance: float
) -> Iterator[Difference]:
    """Parameters and states of an average rank, in bytes."""
    ranks = sum(record.num_stands_for for record in records)

    def mean(category: str) -> float:
        return sum(r.most[category] * r.num_stands_for for r in records) / ranks

    for category, share in HELD.items():
        shares = [getattr(axis.divides(graph, table), share)[0] for axis in discover().values()]
        planned = graph.parameter_bytes * float(prod(shares))
        recorded = mean(category)
        planned *= 1 if category == "parameters" else round(recorded / planned)
        if abs(recorded - planned) > tolerance * max(planned, 1.0):
            yield Difference(kind=category, unit="bytes", recorded=recorded, planned=planned)


# -------------------------------------------------------------------------------------- sent
def _recorded(records: Sequence[Record], graph: ModelGraph) -> dict[Key, By]:
    found: dict[Key, By] = defaultdict(dict)
    for record in records:
        for one in record.collectives:
            times = float(one.count * record.num_stands_for)
            where = _block_of(one.module, graph)
            _add(found[one.collective, one.group], where, times, times * one.bytes)
    return found


def _told(graph: ModelGraph, table: Layouts, case: Case) -> dict[Key, By]:
    """The same as the axes tell it, over all ranks.

    A "send" is told for all ranks of a pipeline together; of a "batch_isend_irecv" the size of the
    whole, of which each rank sends its part.
    """
    found: dict[Key, By] = defaultdict(dict)
    layout = case.layout
    narrow = ITEM_BYTES[layout.precision] / graph.element_bytes
    wide = max(ITEM_BYTES[layout.precision], 4) / graph.element_bytes
    for name in layout.degrees:
        for t in discover()[name].traffic(graph, table):
            size, count = float(t.bytes[0]), float(t.per_step[0]) * layout.num_ranks
            kind = t.collective
            if kind == "batch_isend_irecv":
                kind, size = "send", size / layout.degree(name)
            elif kind == "send":
                count /= layout.degree(name)
            if t.carries == "activations":
                size *= wide if t.is_wide else narrow
            if size and count:
                group = tuple(a for a in layout.degrees if a in t.group and layout.degree(a) > 1)
                _add(found[kind, group], _block_of(t.path, graph), count, count * size)
    return found


def _block_of(path: str, graph: ModelGraph) -> str:
    for block in graph.blocks:
        if f"{path}.".startswith(f"{block.path}."):
            return block.path
    return ""


def _add(by: By, where: str, count: float, size: float) -> None:
    before = by.get(where, (0.0, 0.0))
    by[where] = before[0] + count, before[1] + size


def _of_kind(key: Key, sent: By, told: By, tolerance: float) -> Iterator[Difference]:
    """What differs in all, told by block where that says where, and as a whole elsewhere."""
    kind = f"{key[0]} along {' and '.join(key[1])}"
    for i, unit in enumerate(("messages", "bytes")):
        slack = 1e-6 if unit == "messages" else tolerance
        ours, theirs = (sum(pair[i] for pair in by.values()) for by in (sent, told))
        if abs(ours - theirs) <= slack * max(ours, theirs):
            continue
        apart = [
            Difference(kind=kind, unit=unit, recorded=a, planned=b, module=where)
            for where in sorted(sent.keys() | told.keys())
            for a, b in [(sent.get(where, (0.0, 0.0))[i], told.get(where, (0.0, 0.0))[i])]
            if abs(a - b) > slack * max(a, b)
        ]
        yield from apart or [Difference(kind=kind, unit=unit, recorded=ours, planned=theirs)]
