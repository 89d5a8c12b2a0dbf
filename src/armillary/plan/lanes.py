"""Where the groups of a grid lie on a machine, and what a message over each of them takes."""

from dataclasses import dataclass, field

import numpy as np

from armillary.networks import Groups, Times, times
from armillary.plan.grid import Column, Grid
from armillary.spec import Machine


@dataclass(frozen=True, slots=True)
class Lanes:
    """The groups of one grid by their axes, and what is known of each collective over them."""

    machine: Machine
    grid: Grid
    groups: dict[tuple[str, ...], Groups] = field(default_factory=dict)
    times: dict[tuple[str, tuple[str, ...]], Times] = field(default_factory=dict)

    def seconds(self, collective: str, axes: tuple[str, ...], size: Column) -> Column:
        """Seconds of a `collective` of `size` bytes over the ranks along `axes`."""
        key = (collective, axes)
        if key not in self.times:
            if axes not in self.groups:
                spans = [(self.grid.degree(name), self._stride(name)) for name in axes]
                self.groups[axes] = Groups.of(spans)
            self.times[key] = times(self.machine, collective, self.groups[axes])
        return self.times[key].seconds(size)

    def _stride(self, axis: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        own = self.grid.strides.get(axis, np.ones_like(self.grid.order))
        return self.grid.along("degrees", own)
