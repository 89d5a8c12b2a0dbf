"""What a message of a workload costs on a machine, and over which of its links it is sent.

A unit of a level, such as a node, shares what leads out of it: the link of level l and unit u of
the level below has as much capacity as the unit has ranks, in shares of one rank, since
`networks.seconds` prices a rank with all others at it. A message takes of each level's link the
share of its own seconds that it would take if all other links were endless, so that the level that
binds it is taken whole. Where few are at a link, one rank gets more than its share, up to what an
adapter carries, or the untapered link.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from armillary import networks
from armillary.networks.rates import ENDLESS, with_endless_rates, with_rates
from armillary.networks.spans import units_touched
from armillary.rehearse.congestion import Congestion, Spans
from armillary.spec import Machine, SpecError
from armillary.spec.workload import Workload

Ranks = NDArray[np.int64]
SMALL_BYTES = 2.0**18
"""Of a smaller message the steps count, and not where its bytes go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds of a message: those that no link can shorten, and those on the wire at one share.

    `level` is the index of the outermost level it crosses, `bytes` what it is in all, `at_s` by
    level the seconds on the wire if that level alone took time. `boosts` says that a rank alone at
    its links gets more than its share; flows have that in them.
    """

    fixed_s: float
    wire_s: float
    level: int
    bytes: float
    at_s: tuple[float, ...] = ()
    boosts: bool = True

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.fixed_s + self.wire_s

    def times(self, factor: float) -> "Cost":
        """So many such messages, one after the other."""
        return Cost(
            fixed_s=self.fixed_s * factor,
            wire_s=self.wire_s * factor,
            level=self.level,
            bytes=self.bytes * factor,
            at_s=tuple(one * factor for one in self.at_s),
            boosts=self.boosts,
        )

    def on_flows(self, ratio: float) -> "Cost":
        """The same with a wire that takes so many times as long, as flows have it."""
        wire_s, at_s = self.wire_s * ratio, tuple(one * ratio for one in self.at_s)
        return replace(self, wire_s=wire_s, at_s=at_s, boosts=False)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            fixed_s=self.fixed_s + other.fixed_s,
            wire_s=self.wire_s + other.wire_s,
            level=max(self.level, other.level),
            bytes=self.bytes + other.bytes,
            at_s=tuple(
                one + also for one, also in zip_longest(self.at_s, other.at_s, fillvalue=0.0)
            ),
            boosts=self.boosts and other.boosts,
        )


class Links:
    """A machine's links under a job whose mesh has these degrees, the outermost axis first."""

    def __init__(
        self,
        machine: Machine,
        degrees: Mapping[str, int],
        background: float = 0.0,
        congestion: Congestion | None = None,
    ) -> None:
        self.congestion = congestion
        self.machine, self.degrees, self.background = machine, dict(degrees), background
        self.endless = with_endless_rates(machine)
        self.alone = [_with_one_finite(machine, level.name) for level in machine.levels]
        self.strides: dict[str, int] = {}
        stride = 1
        for axis in reversed(self.degrees):
            self.strides[axis] = stride
            stride *= self.degrees[axis]
        self.num_ranks = stride
        if stride > machine.num_ranks:
            raise SpecError(
                "plan.layout",
                f"{stride:,} ranks on {machine.name}, which has {machine.num_ranks:,}",
                "every rank of a layout has a device of its own (rehearse/links.py)",
                "plan for this machine anew, or name a larger one with --machine",
            )
        self._known: dict[tuple[str, float, Spans], Cost] = {}
        self._by_form: dict[tuple[str, float, Spans], Cost] = {}
        self._ranks: dict[tuple[str, int], Ranks] = {}

    @cached_property
    def units(self) -> list[int]:
        """By level the ranks of one unit of the level below, whose way out the level's link is."""
        return [1, *(level.num_ranks for level in self.machine.levels)][:-1]

    @cached_property
    def first_between(self) -> int:
        """The index of the innermost level between nodes."""
        levels = self.machine.levels
        inside = [i for i, one in enumerate(levels) if one.num_ranks <= self.machine.ranks_per_node]
        return len(inside)

    def spans(self, group: Sequence[str]) -> Spans:
        """Degree and stride of the axes of a group."""
        return tuple((self.degrees[a], self.strides[a]) for a in group if a in self.degrees)

    def cost(self, collective: str, size: float, spans: Spans) -> Cost:
        """What one collective costs, all groups of the job at it."""
        key = (collective, size, spans)
        if key not in self._known:
            self._known[key] = self._priced(*key)
        return self._known[key]

    def _priced(self, collective: str, size: float, spans: Spans) -> Cost:
        cost = self._closed(collective, size, spans)
        ratio = self._ratio(collective, size, spans, cost.level)
        return cost if ratio == 1.0 else cost.on_flows(ratio)

    def _closed(self, collective: str, size: float, spans: Spans) -> Cost:
        """What the closed form says."""
        key = (collective, size, spans)
        if key not in self._by_form:
            self._by_form[key] = self._from_form(*key)
        return self._by_form[key]

    def _from_form(self, collective: str, size: float, spans: Spans) -> Cost:
        given = [(np.array([d]), np.array([s])) for d, s in spans]
        total_s = float(networks.seconds(self.machine, collective, size, spans))
        least_s = float(networks.seconds(self.endless, collective, size, spans))
        touched = units_touched(self.machine.levels, given, 1)
        level = next((i for i, units in enumerate(touched) if units[0] <= 1), len(touched) - 1)
        fixed_s = min(least_s, total_s)
        at_s = [
            min(float(networks.seconds(one, collective, size, spans)), total_s) - fixed_s
            for one in self.alone[: level + 1]
        ]
        return Cost(
            fixed_s=fixed_s,
            wire_s=total_s - fixed_s,
            level=max(level, 0),
            bytes=size,
            at_s=tuple(max(one, 0.0) for one in at_s),
        )

    def _ratio(self, collective: str, size: float, spans: Spans, level: int) -> float:
        """How many times longer flows take on the wire, of what crosses nodes."""
        if self.congestion is None or level < self.first_between or size < SMALL_BYTES:
            return 1.0
        return self.congestion.ratio(collective, size, spans)

    def hop(self, size: float, one: int, other: int, axis: str) -> Cost:
        """What a message between two coordinates of `axis` costs, wherever the others are."""
        if one == other:
            return Cost(fixed_s=0.0, wire_s=0.0, level=0, bytes=0.0)
        level = self._crossed(one, other, axis)
        cost = self._closed("send", size, ((2, self.units[level] if self.units else 1),))
        ratio = self._ratio("send", size, self.spans((axis,)), level)
        return cost if ratio == 1.0 else cost.on_flows(ratio)

    def _crossed(self, one: int, other: int, axis: str) -> int:
        """The outermost level between any two ranks at these coordinates of `axis`."""
        ranks = self.ranks_at(axis, one)
        others = ranks + (other - one) * self.strides[axis]
        for index, level in enumerate(self.machine.levels):
            if (ranks // level.num_ranks == others // level.num_ranks).all():
                return index
        return len(self.machine.levels) - 1

    def ranks_at(self, axis: str, coordinate: int) -> Ranks:
        """All ranks of the job with this coordinate along `axis`; all where there is no axis."""
        if (axis, coordinate) not in self._ranks:
            ranks = np.arange(self.num_ranks)
            if axis:
                ranks = ranks[ranks // self.strides[axis] % self.degrees[axis] == coordinate]
            self._ranks[axis, coordinate] = ranks
        return self._ranks[axis, coordinate]

    # ----------------------------------------------------------------------------------- sharing
    def boost(self, cost: Cost) -> float:
        """How many times its share a rank gets where nobody else sends."""
        if not cost.boosts:
            return 1.0
        least_s = max((one / self._alone(i) for i, one in enumerate(cost.at_s)), default=0.0)
        return max(cost.wire_s / least_s, 1.0) if least_s > 0 else 1.0

    def _alone(self, index: int) -> float:
        """How many times its share of a level's link a rank gets that is alone at it."""
        if index < self.first_between:
            return 1.0
        level = self.machine.levels[index]
        return max(self.machine.nic_bytes_per_s / level.link_bytes_per_s, 1.0) * level.taper

    def taken(self, cost: Cost) -> list[tuple[int, float]]:
        """By level the share of its link that one rank takes while it sends."""
        if cost.wire_s <= 0:
            return []
        return [(i, min(one / cost.wire_s, 1.0)) for i, one in enumerate(cost.at_s) if one > 0]

    def capacity(self, level: int) -> float:
        """Ranks that a unit below `level` has, less what other jobs take of links between nodes."""
        left = 1.0 - self.background if level >= self.first_between else 1.0
        return max(self.units[level] * left, 1e-3)


def _with_one_finite(machine: Machine, name: str) -> Machine:
    """`machine` on which the links of one level alone take time."""
    for level in machine.levels:
        if level.name != name:
            machine = with_rates(machine, ENDLESS, level.name)
    return machine


def with_order(workload: Workload, order: Sequence[str]) -> dict[str, int]:
    """The degrees of a workload with the axes placed in another order, the outermost first."""
    return {axis: workload.degrees[axis] for axis in order}
