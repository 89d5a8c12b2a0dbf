"""How a plan scales to the whole machine: with the batch as it is, and with a batch that grows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.core.failures import slowest_of
from armillary.networks.rates import with_endless_rates
from armillary.plan.economy import Economy
from armillary.plan.grid import Grid
from armillary.plan.lanes import Learnt
from armillary.plan.price import price
from armillary.plan.ranking import pareto
from armillary.plan.search import search
from armillary.plan.software import Software
from armillary.plan.terms import SECONDS, only
from armillary.plan.wish import Found, Wish
from armillary.spec import Layout, Machine, ModelGraph, ScalingPoint

GUESS_RELATIVE_SPREAD = 0.01
"""Spread of one rank's step times, as a share of their mean: what slow ranks are drawn from."""
MOST_POINTS = 18
STRONG, WEAK = "strong", "weak"


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Prices points of scaling curves for one model, machine and software."""

    graph: ModelGraph
    machine: Machine
    software: Software
    economy: Economy

    @cached_property
    def _machines(self) -> tuple[tuple[Machine, Learnt], ...]:
        """The machine, and one on which messages take what they take to start."""
        endless, learnt = with_endless_rates(self.machine), Learnt.of(self.machine)
        return (self.machine, learnt), (endless, learnt.with_links_of(endless))

    def point(self, kind: str, alone: Grid, batch: int) -> ScalingPoint | None:
        """The point of a grid of one layout, without its efficiency; None where it is refused."""
        priced, starts = (
            price(self.graph, on, self.software, alone, global_batch_size=batch, learnt=learnt)
            for on, learnt in self._machines
        )
        step_s = only(priced.step_s)
        if not np.isfinite(step_s):
            return None
        layout = alone.layout(0)
        devices = layout.num_ranks
        is_in_it = only(priced.terms.get("slowest replica", 0.0)) > 0
        spread = 0.0 if is_in_it else float(slowest_of(devices, GUESS_RELATIVE_SPREAD)) - 1.0
        return ScalingPoint(
            kind=kind,
            num_devices=devices,
            global_batch_size=batch,
            layout=str(layout),
            predicted_step_s=step_s,
            predicted_efficiency=0.0,
            predicted_latency_s=sum(
                only(column) for name, column in starts.terms.items() if name not in SECONDS
            ),
            predicted_straggler_s=step_s * spread,
            predicted_goodput=float(self.economy.goodput(np.array([devices]))[0]),
        )

    def strong(self, found: Found, best: int, wish: Wish) -> Iterator[ScalingPoint]:
        """The fastest layout for more and more devices: those given, and then the whole machine."""
        contenders = found.contenders
        curve = pareto(contenders.num_devices.astype(np.float64), contenders.step_s)
        grids = [found.alone(i) for i in _spread(curve)]
        if self.machine.num_ranks > wish.num_devices:
            grids += self._beyond(found.layout(best), wish, float(contenders.step_s[best]))
        points = [self.point(STRONG, alone, wish.global_batch_size) for alone in grids]
        yield from _with_efficiency([point for point in points if point is not None])

    def _beyond(self, layout: Layout, wish: Wish, fastest_s: float) -> list[Grid]:
        """Layouts on more devices than were given, alike to the best: each degree a power of two
        times its own, or a power of two less.
        """
        wider = replace(wish, num_devices=self.machine.num_ranks, wide=False)
        try:
            found = search(self.graph, self.machine, self.software, wider, alike=layout)
        except ValueError:
            return []
        devices, step_s = found.contenders.num_devices, found.contenders.step_s
        curve = pareto(devices.astype(np.float64), step_s)
        better = [i for i in curve if devices[i] > wish.num_devices and step_s[i] < fastest_s]
        return [found.alone(i) for i in _spread(np.asarray(better, dtype=np.int64))]

    def weak(self, alone: Grid, batch: int) -> Iterator[ScalingPoint]:
        """The chosen layout with more and more replicas, and as many samples for each."""
        replicas = next(
            a.name for a in discover().values() if a.splits_batch and not a.shares_parameters
        )
        devices, times = alone.layout(0).num_ranks, 1
        points: list[ScalingPoint] = []
        while devices * times <= self.machine.num_ranks:
            degrees = dict(alone.degrees) | {replicas: alone.degrees[replicas] * times}
            point = self.point(WEAK, replace(alone, degrees=degrees), batch * times)
            if point is None:
                break
            points.append(point)
            times *= 2
        yield from _with_efficiency(points)


def _with_efficiency(points: Sequence[ScalingPoint]) -> Iterator[ScalingPoint]:
    """The points with their samples a second and device, as a share of the most of any of them."""
    each = [p.global_batch_size / p.predicted_step_s / p.num_devices for p in points]
    for point, mine in zip(points, each, strict=True):
        yield replace(point, predicted_efficiency=mine / max(each))


def _spread(index: NDArray[np.int64]) -> list[int]:
    """At most `MOST_POINTS` of the indices, evenly, the first and the last among them."""
    places = np.linspace(0, len(index) - 1, min(len(index), MOST_POINTS)).round()
    return [int(index[int(place)]) for place in np.unique(places)]
