"""Seconds of a collective on a machine: the fastest way of its library, over the levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from armillary.core.collectives import Array
from armillary.networks.fitted import FitTable, sent_by_rank, tables_of
from armillary.networks.middleware import WAYS, Way, library
from armillary.networks.reach import Reach, reaches
from armillary.networks.spans import Column, Span, group_sizes, units_touched
from armillary.networks.ways import Parts, parts
from armillary.spec import SpecError, nearest
from armillary.spec.machine import Machine

ROWS_AT_ONCE = 2**12  # so that the columns at work stay in a core's second cache (measured)


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One part of a transfer's time, for people: where, what, how long, and who says so."""

    level: str
    what: str
    seconds: float
    source: str


def seconds(machine: Machine, collective: str, bytes: ArrayLike, spans: Sequence[Span]) -> Array:
    """Seconds of one `collective` of `bytes` over a group, in the broadcast shape of all columns.

    `collective` is torch's name. `bytes` is the size of the whole tensor before it is divided over
    the group, as `axes.Transfer.bytes` says. `spans` has the degree and the stride in ranks of
    each axis of the group; the innermost axis of a mesh has stride 1. All ranks of the machine are
    taken to do the same at the same time, in groups of their own.

    Raises: `SpecError` on a collective that the machine's library lacks, or an unknown topology.
    Source: `networks/middleware.py` names the library's algorithms and costs, each level its link.
    """
    ways = ways_of(machine, collective)
    shape, size, columns = _columns(bytes, spans)
    tables = tables_of(machine.levels, collective)
    found = np.zeros_like(size)
    for start in range(0, size.size, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        axes = [(degree[rows], stride[rows]) for degree, stride in columns]
        found[rows] = _priced(machine, collective, ways, tables, size[rows], axes)
    return found.reshape(shape)


def _priced(
    machine: Machine,
    collective: str,
    ways: Sequence[Way],
    tables: Sequence[FitTable | None],
    size: Array,
    axes: Sequence[tuple[Column, Column]],
) -> Array:
    """Seconds of every row: of the fit of the level that holds the group, or the fastest way."""
    ranks = group_sizes(axes, size.size)
    found = np.zeros_like(size)
    is_open = (ranks > 1) & (size > 0)
    touched = units_touched(machine.levels, axes, size.size)
    for table, units in zip(tables, touched, strict=True):
        if table is not None:
            rows = np.flatnonzero(is_open & (units == 1))
            sent = sent_by_rank(collective, ranks[rows]) * size[rows]
            found[rows] = table.seconds(ranks[rows], sent)
            is_open[rows] = False
    rows = np.flatnonzero(is_open)
    if rows.size and machine.levels:
        taken = [units[rows] for units in touched]
        lying = reaches(machine, taken, tables, ranks[rows])
        found[rows] = _fastest(ways, lying, ranks[rows], size[rows])
    return found


def explain(
    machine: Machine, collective: str, bytes: float, spans: Sequence[tuple[int, int]]
) -> tuple[Term, ...]:
    """The terms of `seconds` for one group, which add up to it; none where nothing is sent."""
    ways = ways_of(machine, collective)
    _, size, columns = _columns(bytes, spans)
    ranks = group_sizes(columns, size.size)
    if ranks[0] <= 1 or size[0] <= 0:
        return ()
    touched = units_touched(machine.levels, columns, size.size)
    tables = tables_of(machine.levels, collective)
    for table, units in zip(tables, touched, strict=True):
        if table is not None and units[0] == 1:
            return _measured_terms(table, collective, ranks, size)
    lying = reaches(machine, touched, tables, ranks)
    best = min(ways, key=lambda way: float(parts(way, lying, ranks, size).seconds[0]))
    return _terms(best, lying, parts(best, lying, ranks, size))


def ways_of(machine: Machine, collective: str) -> tuple[Way, ...]:
    """The ways of the machine's library but for those switched off on its network."""
    known = WAYS[library(machine)]
    if collective not in known:
        raise SpecError(
            "transfer.collective",
            f"{collective!r}, which {library(machine)} does not have",
            f"the collectives are {', '.join(sorted(known))}",
            nearest(collective, known),
        )
    networks = {one.network for one in machine.levels if one.num_ranks > machine.ranks_per_node}
    return tuple(way for way in known[collective] if way.protocol.serves(networks))


def _columns(
    size: ArrayLike, spans: Sequence[Span]
) -> tuple[tuple[int, ...], Array, list[tuple[Column, Column]]]:
    """The shape of the answer, and all columns flat and of one length."""
    sizes = np.asarray(size, np.float64)
    axes = [
        (np.asarray(degree, np.int64), np.asarray(stride, np.int64)) for degree, stride in spans
    ]
    shape = np.broadcast_shapes(sizes.shape, *(column.shape for axis in axes for column in axis))

    def flat(column: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(column, shape).reshape(-1)

    return shape, flat(sizes), [(flat(degree), flat(stride)) for degree, stride in axes]


def _fastest(ways: Sequence[Way], lying: Sequence[Reach], ranks: Array, size: Array) -> Array:
    best = np.full_like(size, np.inf)
    for way in ways:
        np.minimum(best, parts(way, lying, ranks, size).seconds, out=best)
    return best


def _measured_terms(
    table: FitTable, collective: str, ranks: Array, size: Array
) -> tuple[Term, ...]:
    sent = sent_by_rank(collective, ranks) * size
    start = table.seconds(ranks, np.zeros_like(sent))
    wire = sent / table.bytes_per_s(ranks)
    pieces = table.seconds(ranks, sent) - start - wire
    named = (("start", start), ("wire", wire), ("pieces", pieces))
    source = table.source(float(ranks[0]))
    return tuple(
        Term(level=table.level.name, what=f"measured {what}", seconds=float(s[0]), source=source)
        for what, s in named
    )


def _terms(way: Way, lying: Sequence[Reach], costs: Parts) -> tuple[Term, ...]:
    """Start, steps of each level, the wire (of the slowest level if pipelined), and the pieces."""
    protocol = way.protocol

    def term(level: str, what: str, seconds: float, source: str) -> Term:
        return Term(level=level, what=f"{way.name}: {what}", seconds=seconds, source=source)

    terms = [term("", "start", protocol.start_s, protocol.source)]
    for index, reach in enumerate(lying):
        algorithm = way.inside if reach.is_inside_node else way.between
        steps, wire = float(costs.steps_s[index][0]), float(costs.wire_s[index][0])
        if steps and costs.counts_steps(index):
            source = f"{protocol.source}; {algorithm.source}"
            terms.append(term(reach.level.name, "steps", steps, source))
        if wire and costs.counts_wire(index):
            source = f"{reach.level.source or 'the machine'}; {reach.rate_source}"
            terms.append(term(reach.level.name, "wire", wire, source))
    if way.is_pipelined:
        rest = float(costs.seconds[0]) - sum(one.seconds for one in terms)
        terms.append(term("", "pieces", rest, "core/collectives.py: pipelined_s"))
    return tuple(terms)
