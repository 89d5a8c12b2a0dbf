"""Where the groups of a grid lie on a machine, and what a message over each of them takes."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from armillary.networks import Fares, Groups, Times
from armillary.networks.spans import group_sizes, units_touched
from armillary.plan.grid import Column, Grid
from armillary.spec import Machine

if TYPE_CHECKING:
    from armillary.plan.work import Parts


@dataclass(frozen=True, slots=True)
class Learnt:
    """What pricing one grid teaches for the next, of the same model on the same machine.

    `reads` are by axis the dims of a grid that its traffic was seen to depend on, `parts` the work
    of ranks by what it depends on (`plan.parts.price_parts`), on the same devices.
    """

    fares: Fares
    reads: dict[str, set[str]] = field(default_factory=dict)
    parts: "dict[bytes, Parts]" = field(default_factory=dict)

    @classmethod
    def of(cls, machine: Machine) -> Self:
        """Nothing yet, of `machine`."""
        return cls(Fares(machine))

    def with_links_of(self, machine: Machine) -> "Learnt":
        """The same for a machine of other links between the same devices."""
        return Learnt(Fares(machine), self.reads, self.parts)

    def with_devices_of(self, machine: Machine) -> "Learnt":
        """The same for a machine of other devices between the same links."""
        return Learnt(self.fares, self.reads)


@dataclass(frozen=True, slots=True)
class Lanes:
    """The groups of one grid by their axes, and what each collective over them takes."""

    fares: Fares
    grid: Grid
    groups: dict[tuple[str, ...], Groups] = field(default_factory=dict)
    times: dict[tuple[str, tuple[str, ...]], Times] = field(default_factory=dict)

    def seconds(self, collective: str, axes: tuple[str, ...], size: Column) -> Column:
        """Seconds of a `collective` of `size` bytes over the ranks along `axes`."""
        key = (collective, axes)
        if key not in self.times:
            self.times[key] = self.fares.times(collective, self._group(axes))
        return self.times[key].seconds(size)

    def places(self, axes: tuple[str, ...]) -> Column:
        """The units of the innermost links that a group along `axes` touches, or its ranks in one.

        It broadcasts over the grid.
        """
        group = self._group(axes)
        ranks = group_sizes(group.axes, group.num_distinct)
        touched = units_touched(self.fares.machine.levels, group.axes, group.num_distinct)
        units = touched[0] if touched else np.ones_like(ranks)
        return np.asarray(np.where(units > 1, units, ranks)[group.place])

    def _group(self, axes: tuple[str, ...]) -> Groups:
        if axes not in self.groups:
            spans = [(self.grid.degree(name), self._stride(name)) for name in axes]
            self.groups[axes] = Groups.of(spans)
        return self.groups[axes]

    def _stride(self, axis: str) -> NDArray[np.int64]:
        own = self.grid.strides.get(axis, np.ones_like(self.grid.order))
        return self.grid.along("degrees", own)
