"""Seconds of a collective on a machine: the fastest way of its library, over the levels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from armillary.core.collectives import Array
from armillary.networks.fitted import FitTable, sent_by_rank, tables_of
from armillary.networks.groups import Groups
from armillary.networks.middleware import WAYS, Way, library
from armillary.networks.reach import Reach, reaches
from armillary.networks.spans import Column, Span, group_sizes, units_touched
from armillary.networks.ways import Parts, parts
from armillary.spec import SpecError, nearest
from armillary.spec.machine import Machine


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
    return Fares(machine).times(collective, Groups.of(spans)).seconds(bytes)


@dataclass(frozen=True, slots=True)
class Times:
    """What a collective takes over groups, whatever the size of its tensor.

    A way takes `start_s` + S `byte_s` + sqrt(S) `root_s` of S bytes, rows of its curve of shape
    [3, distinct groups], and takes no more than its most bytes; the fastest way is taken.
    """

    groups: Groups
    ways: tuple[tuple[Array, float], ...]

    def seconds(self, bytes: ArrayLike) -> Array:
        """Seconds of a tensor of so many bytes, in the broadcast shape of bytes and groups."""
        size = np.asarray(bytes, np.float64)
        root, place = np.sqrt(size), self.groups.place
        found: Array | None = None
        for (start_s, byte_s, root_s), most_bytes in self.ways:
            way_s = size * byte_s[place] + start_s[place]
            if root_s.any():
                way_s = way_s + root * root_s[place]
            if most_bytes < np.inf:
                way_s = np.where(size <= most_bytes, way_s, np.inf)
            found = way_s if found is None else np.minimum(found, way_s)
        shape = np.broadcast_shapes(size.shape, self.groups.shape)
        return np.zeros(shape) if found is None else np.asarray(np.where(size > 0, found, 0.0))


@dataclass(frozen=True, slots=True)
class Fares:
    """What collectives take on one machine; what is the same for all groups is found once."""

    machine: Machine
    known: dict[str, tuple[tuple[Way, ...], list[FitTable | None]]] = field(default_factory=dict)

    def times(self, collective: str, groups: Groups) -> Times:
        """The time of one `collective` over `groups`, as `seconds` tells it, for any size.

        Raises: `SpecError` on a collective that the machine's library lacks, or an unknown
        topology.
        """
        levels = self.machine.levels
        if collective not in self.known:
            tables = tables_of(levels, collective)
            self.known[collective] = (ways_of(self.machine, collective), tables)
        ways, tables = self.known[collective]
        ranks = group_sizes(groups.axes, groups.num_distinct)
        touched = units_touched(levels, groups.axes, groups.num_distinct)
        found = np.zeros((len(ways), 3, len(ranks)))
        is_open = ranks > 1
        for table, units in zip(tables, touched, strict=True):
            if table is not None:
                rows = np.flatnonzero(is_open & (units == 1))
                found[:, :, rows] = table.curve(ranks[rows], sent_by_rank(collective, ranks[rows]))
                is_open[rows] = False
        rows = np.flatnonzero(is_open)
        if rows.size and levels:
            lying = reaches(self.machine, [units[rows] for units in touched], tables, ranks[rows])
            for index, way in enumerate(ways):
                found[index][:, rows] = parts(way, lying, ranks[rows], np.ones(rows.size)).curve
        curves = list(zip(found, (way.protocol.most_bytes for way in ways), strict=True))
        return Times(groups, tuple(one for one in curves if not _is_beaten(one, curves)))


def _is_beaten(one: tuple[Array, float], others: Sequence[tuple[Array, float]]) -> bool:
    """Whether one of the others is never slower and somewhere faster, whatever the size."""
    curve, most_bytes = one
    return any(
        most >= most_bytes and (other <= curve).all() and (other < curve).any()
        for other, most in others
    )


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
