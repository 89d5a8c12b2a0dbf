"""The step if something were otherwise: faster links, less jitter, another placement."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from math import factorial

from armillary.networks.rates import with_rates
from armillary.rehearse.congestion import Congestion
from armillary.rehearse.links import Links, with_order
from armillary.rehearse.periods import step_of
from armillary.spec import Machine
from armillary.spec.rehearsal import WhatIf
from armillary.spec.workload import Workload

NETWORKS = (0.5, 1.0, 2.0, 4.0)
JITTERS = (0.0, 0.5, 1.0, 2.0)
MOST_PLACEMENTS = 6
QUICK_PASSES = 1500
"""Passes that are played of each: its step is held against that of the plan played as far."""


class Otherwise:
    """A workload on a machine, to be played with something changed."""

    def __init__(
        self,
        workload: Workload,
        machine: Machine,
        background: float,
        congestion: Congestion | None,
    ) -> None:
        self.workload, self.machine, self.background = workload, machine, background
        self.congestion = congestion
        self.own_s = self.step_s()

    def step_s(
        self, factor: float = 1.0, level: str = "", placement: tuple[str, ...] = ()
    ) -> float:
        """Seconds of the step with links of `factor` times the rate and axes in another order."""
        machine = with_rates(self.machine, factor, level) if factor != 1.0 else self.machine
        order = placement or tuple(self.workload.degrees)
        load = replace(self.workload, degrees=with_order(self.workload, order))
        links = Links(machine, load.degrees, self.background, self.congestion)
        return step_of(load, links, QUICK_PASSES)[0]


def placements(workload: Workload) -> list[tuple[str, ...]]:
    """The plan's own order of the axes and some others: all, or two of them changed over."""
    own = tuple(workload.degrees)
    if factorial(len(own)) <= MOST_PLACEMENTS:
        return [own, *(order for order in permutations(own) if order != own)]
    found = [own]
    for one in range(len(own)):
        for other in range(one + 1, len(own)):
            order = list(own)
            order[one], order[other] = order[other], order[one]
            found.append(tuple(order))
    return found[:MOST_PLACEMENTS]


def what_ifs(
    workload: Workload,
    machine: Machine,
    background: float,
    congestion: Congestion | None,
    predicted_s: float,
) -> Iterator[WhatIf]:
    """One thing changed at a time, each as it comes; all are scaled to the predicted step."""
    other = Otherwise(workload, machine, background, congestion)
    scale = predicted_s / other.own_s

    def played(words: str, **changed: object) -> WhatIf:
        network = float(str(changed.get("factor", 1.0)))
        level, placement = str(changed.get("level", "")), changed.get("placement", ())
        assert isinstance(placement, tuple)
        step_s = other.step_s(network, level, placement) * scale
        return WhatIf(
            words=words,
            predicted_step_s=step_s,
            network=network,
            level=level,
            placement=placement,
        )

    yield played("links twice as fast", factor=2.0)
    yield played("links half as fast", factor=0.5)
    if len(machine.levels) > 1:
        for level in machine.levels:
            words = f"links of the {level.name} level twice as fast"
            yield played(words, factor=2.0, level=level.name)
    for order in placements(workload)[1:]:
        yield played(f"axes placed {', '.join(order)}, outermost first", placement=order)


def grid(
    workload: Workload,
    machine: Machine,
    background: float,
    congestion: Congestion | None,
    predicted_s: float,
) -> list[list[float]]:
    """Seconds of the step by placement and factor on the links, for the sliders of the page."""
    other = Otherwise(workload, machine, background, congestion)
    scale = predicted_s / other.own_s
    return [
        [other.step_s(factor, "", order) * scale for factor in NETWORKS]
        for order in placements(workload)
    ]
