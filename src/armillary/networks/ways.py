"""What one way of a collective costs over the levels: steps and wire of each, and all together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from armillary.core.collectives import Algorithm, Array, pipelined_s
from armillary.networks.middleware import Way
from armillary.networks.reach import Reach


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Seconds of a way: `steps_s` and `wire_s` by level, and `seconds` in all, as columns.

    Steps of all levels count, or only the longest; so do the wires.
    """

    steps_s: list[Array]
    wire_s: list[Array]
    latency_s: Array
    pieces: Array | None
    seconds: Array
    all_steps_count: bool
    all_wires_count: bool

    def with_wire(self, wire_s: Array) -> Array:
        """Seconds if all wires together took `wire_s`."""
        if self.pieces is None:
            return np.asarray(self.latency_s + wire_s)
        return pipelined_s(self.latency_s, wire_s, self.pieces)

    def counts_steps(self, level: int) -> bool:
        """Whether the steps of a level count in the first row."""
        return self.all_steps_count or level == _longest(self.steps_s)

    def counts_wire(self, level: int) -> bool:
        """Whether the wire of a level counts in the first row."""
        return self.all_wires_count or level == _longest(self.wire_s)


def parts(way: Way, lying: Sequence[Reach], ranks: Array, size: Array) -> Parts:
    """The cost of `way` over groups of `ranks` that lie so, of tensors of `size` bytes."""
    steps_s, wire_s = [], []
    for reach in lying:
        algorithm = way.inside if reach.is_inside_node else way.between
        steps, sent = _FLOWS[way.flow](algorithm, reach, ranks)
        steps_s.append(reach.steps_s(steps, way.protocol, way.pattern))
        wire_s.append(sent * size / (reach.bytes_per_s(way.pattern) * way.protocol.fraction))
    all_steps = way.flow != "farthest"
    all_wires = way.flow == "by level"
    latency = way.protocol.start_s + (_summed if all_steps else _slowest)(steps_s)
    wire = (_summed if all_wires else _slowest)(wire_s)
    pieces = _pieces(lying, way.protocol.pieces) if way.is_pipelined else None
    found = latency + wire if pieces is None else pipelined_s(latency, wire, pieces)
    if way.protocol.most_bytes < np.inf:
        found = np.where(size <= way.protocol.most_bytes, found, np.inf)
    return Parts(
        steps_s=steps_s,
        wire_s=wire_s,
        latency_s=latency,
        pieces=pieces,
        seconds=found,
        all_steps_count=all_steps,
        all_wires_count=all_wires,
    )


def _pieces(lying: Sequence[Reach], between: float | None) -> Array:
    """The share of the cross term of pieces: that of the outermost level of each group.

    Through adapters it is `between`, where the protocol has one of its own.
    """
    found = np.zeros_like(lying[0].num_units)
    for reach in lying:
        own = None if reach.is_inside_node else between
        share = reach.network.pieces if own is None else own
        found = np.where(reach.num_units > 1, share, found)
    return found


def _longest(times: Sequence[Array]) -> int:
    return max(range(len(times)), key=lambda level: float(times[level][0]))


def _slowest(times: Sequence[Array]) -> Array:
    return np.asarray(np.maximum.reduce(list(times)))


def _summed(times: Sequence[Array]) -> Array:
    return np.asarray(sum(times[1:], start=times[0]))


def _around(algorithm: Algorithm, reach: Reach, ranks: Array) -> tuple[Array, Array]:
    """One ring through all ranks: it crosses this level once for every unit but the last.

    Every piece passes every crossing; the ranks held in a unit share the crossings out of it, each
    a part of the pieces through its own adapter.
    """
    share = (reach.below - reach.touched) / (ranks - 1.0)
    crosses = reach.num_units > 1
    return algorithm.steps(ranks) * share, crosses * algorithm.sent(ranks) / reach.held


def _up_and_down(algorithm: Algorithm, reach: Reach, ranks: Array) -> tuple[Array, Array]:
    """Among the units of this level, whose ranks share the tensor if the algorithm splits it."""
    sent = algorithm.sent(reach.num_units)
    return algorithm.steps(reach.num_units), sent / reach.held if algorithm.splits else sent


def _at_once(algorithm: Algorithm, reach: Reach, ranks: Array) -> tuple[Array, Array]:
    """Each rank to each other: those in other units of this level are a share of the others."""
    partners = (reach.held * (reach.num_units - 1.0)) / (ranks - 1.0)
    return algorithm.steps(ranks) * partners, algorithm.sent(ranks) * partners


def _pair(algorithm: Algorithm, reach: Reach, ranks: Array) -> tuple[Array, Array]:
    """One message, which crosses this level if the group does."""
    crosses = reach.num_units > 1
    return algorithm.steps(ranks) * crosses, algorithm.sent(ranks) * crosses


_FLOWS = {
    "around": _around,
    "up and down": _up_and_down,
    "by level": _up_and_down,
    "at once": _at_once,
    "farthest": _pair,
}
