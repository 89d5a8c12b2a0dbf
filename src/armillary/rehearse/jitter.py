"""Steps that differ: jitter of passes, devices and replicas, slow devices, slow and shared links.

Replicas, which take other samples, are played apart, each with its own clock; they wait for each
other where a collective goes over an axis of theirs. The ranks of a replica at one coordinate of
the pipeline meet in every pass, in collectives inside it: of them the slowest counts, drawn from
the distribution of the largest of n. Contention is as in the step without jitter.
"""

# Shapes: N samples; R... degrees of the axes whose ranks take other samples
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from armillary.core.chance import Array, Draw, Slowest, replay
from armillary.core.orders import rank_of
from armillary.core.play import Played
from armillary.rehearse.step import AHEAD, BACK, COMPUTE, Label, Step
from armillary.spec import SpecError

PASSES = ("F", "B", "I", "W")
GUESS_PASS_SPREAD = 0.01
GUESS_DEVICE_SPREAD = 0.02
"""Relative standard deviations of a pass and of a device against its like.

Sinha et al. 2022, "Not All GPUs Are Created Equal", SC22, found 8 % between devices of a cluster
on average, end to end; what of it is steady and what varies is not told.
"""
MOST_AT_ONCE = 2**16
"""Samples times replicas that are played at once: half a megabyte a task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Jitter:
    """What makes steps differ; all spreads are relative standard deviations.

    `slow_devices` and `slow_links` are by rank and by node, how many times slower; `background` is
    the mean share of the links between nodes that other jobs take, and from step to step it varies
    as an exponential number up to a half.
    """

    pass_spread: float = GUESS_PASS_SPREAD
    device_spread: float = GUESS_DEVICE_SPREAD
    replica_spread: float = 0.0
    slow_devices: dict[int, float] = field(default_factory=dict)
    slow_links: dict[int, float] = field(default_factory=dict)
    background: float = 0.0

    @classmethod
    def parse(cls, words: str, replica_spread: float = 0.0) -> "Jitter":
        """`pass=0.01,device=0.02,replica=0.05`, or one number for passes; "none" for no jitter.

        Raises: `SpecError` on another word or a number below 0.
        """
        values = {
            "pass": GUESS_PASS_SPREAD,
            "device": GUESS_DEVICE_SPREAD,
            "replica": replica_spread,
        }
        if words == "none":
            values = dict.fromkeys(values, 0.0)
        elif words:
            for part in words.split(","):
                name, equals, text = part.strip().rpartition("=")
                values[_named(name if equals else "pass", values)] = _spread(text)
        return cls(
            pass_spread=values["pass"],
            device_spread=values["device"],
            replica_spread=values["replica"],
        )

    def scaled(self, factor: float) -> "Jitter":
        """All spreads `factor` times as large."""
        return Jitter(
            pass_spread=self.pass_spread * factor,
            device_spread=self.device_spread * factor,
            replica_spread=self.replica_spread * factor,
            slow_devices=self.slow_devices,
            slow_links=self.slow_links,
            background=self.background,
        )


def _named(name: str, known: dict[str, float]) -> str:
    if name in known:
        return name
    raise SpecError(
        "--jitter",
        repr(name),
        f"what varies is one of {', '.join(known)}",
        "write --jitter pass=0.01,device=0.02 or --jitter none",
    )


def _spread(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value < 1:
        return value
    raise SpecError(
        "--jitter",
        repr(text),
        "a spread is a standard deviation as a share of the mean, at least 0 and below 1",
        "write it as 0.02",
    )


def sampled_steps(step: Step, played: Played, jitter: Jitter, num_samples: int, seed: int) -> Array:
    """Seconds of `num_samples` steps, each with its own chance; the same seed gives the same.

    Shape: [N].
    """
    rng = np.random.default_rng(seed)
    shape = _replicas(step)
    at_once = max(1, MOST_AT_ONCE // prod(shape))
    found = []
    for start in range(0, num_samples, at_once):
        number = min(at_once, num_samples - start)
        draw = Chance(step, jitter, (number, *shape), rng, seed)
        ends = replay(step.tasks, played, draw.draw)
        ends = np.broadcast_to(ends, (number, *shape))
        found.append(ends.reshape(number, -1).max(axis=1))
    return np.concatenate(found)


def _replicas(step: Step) -> tuple[int, ...]:
    load = step.workload
    return tuple(load.degrees[axis] for axis in load.batch_axes)


class Chance:
    """The factors of one set of samples, drawn as they are asked for."""

    def __init__(
        self,
        step: Step,
        jitter: Jitter,
        shape: tuple[int, ...],
        rng: np.random.Generator,
        seed: int,
    ) -> None:
        self.step, self.jitter, self.shape, self.rng = step, jitter, shape, rng
        load = step.workload
        self.slowest = Slowest()
        inner = [a for a in load.degrees if a != load.stages_axis and a not in load.batch_axes]
        self.num_inner = prod(load.degrees[a] for a in inner)
        ones = (1, *shape[1:])
        spread = jitter.replica_spread
        self.steady: list[Any] = []
        replica = 1.0 + spread * rng.standard_normal(shape) if spread else 1.0
        for coordinate in range(len(step.players)):
            devices: Any = 1.0
            if jitter.device_spread:  # the same devices in every sample
                fixed = np.random.default_rng([seed, coordinate])
                devices = 1.0 + jitter.device_spread * self.slowest.draw(
                    self.num_inner, ones, fixed
                )
            slow = self._at(coordinate, jitter.slow_devices, by_node=False)
            self.steady.append(np.maximum(devices * replica, 0.05) * slow)
        self.links = [
            self._at(coordinate, jitter.slow_links, by_node=True)
            for coordinate in range(len(step.players))
        ]
        taken = np.minimum(rng.exponential(jitter.background, shape[:1]), 0.5)
        self.shared_links = (1.0 / (1.0 - taken)).reshape(-1, *[1] * (len(shape) - 1))
        self.draw = Draw(fixed=self.fixed, wire=self.wire, shared=self.shared)

    def _at(self, coordinate: int, slow: dict[int, float], *, by_node: bool) -> Any:
        """By replica how many times slower the slowest of its ranks at `coordinate` is."""
        if not slow:
            return 1.0
        links, load = self.step.links, self.step.workload
        found = np.ones((1, *self.shape[1:]))
        ranks = links.ranks_at(load.stages_axis, coordinate)
        units = ranks // links.machine.ranks_per_node if by_node else ranks
        for unit, factor in slow.items():
            for rank in ranks[units == unit].tolist():
                place = tuple(rank // links.strides[a] % load.degrees[a] for a in load.batch_axes)
                found[(0, *place)] = max(found[(0, *place)], factor)
        return found

    def fixed(self, index: int) -> Any:
        """The factor of what a device computes."""
        label = self.step.labels[index]
        if label.kind not in PASSES and label.kind != "update":
            return 1.0
        steady = self.steady[label.coordinate]
        if not self.jitter.pass_spread:
            return steady
        varied = self.slowest.draw(self.num_inner, self.shape, self.rng)
        return steady * np.maximum(1.0 + self.jitter.pass_spread * varied, 0.05)

    def wire(self, index: int) -> Any:
        """The factor of what goes over the wire: of links between nodes that others use, too."""
        label = self.step.labels[index]
        if label.level < self.step.links.first_between:
            return 1.0
        slow = self.links[label.coordinate]
        if label.lane in (AHEAD, BACK):
            load = self.step.workload
            to = label.stage + (1 if label.lane == AHEAD else -1)
            slow = np.maximum(slow, self.links[rank_of(to, len(self.links), load.schedule)])
        return slow * self.shared_links

    def shared(self, index: int) -> tuple[int, ...]:
        """The dims of the replicas that a collective is over."""
        label = self.step.labels[index]
        if label.lane in (AHEAD, BACK) or (label.lane == COMPUTE and not label.group):
            return ()
        return shared_dims(label, self.step)


def shared_dims(label: Label, step: Step) -> tuple[int, ...]:
    """Of the dims [N, R...] those that a group goes over."""
    axes = step.workload.batch_axes
    return tuple(1 + axes.index(axis) for axis in label.group if axis in axes)
