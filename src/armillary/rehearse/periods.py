"""Long steps folded in time: once a pipeline is full, each further round takes the same seconds.

A step of m micro batches is played with m1 and with m2 = m1 + one round of p, both the same modulo
p, and step(m) = step(m1) + (m - m1) (step(m2) - step(m1)) / (m2 - m1). That is exact where the
order of every rank repeats itself (all schedules between filling and draining) and m1 micro batches
fill the pipeline and outlast what is sent once a step; a test holds it against the whole step.
"""

from dataclasses import replace

from armillary.core.play import Played
from armillary.rehearse.building import build
from armillary.rehearse.links import Links
from armillary.rehearse.step import Step
from armillary.spec.workload import Message, Workload

MOST_PASSES = 6000
"""Passes of all ranks above which a step is folded: a second's work for one core (measured)."""
FILLS = 2
"""How many times as many micro batches as ranks are played at least."""


def shorter(workload: Workload, num_micro_batches: int) -> Workload:
    """The same step with fewer micro batches; what is sent once a step stays."""
    whole = workload.num_micro_batches
    share = num_micro_batches / whole

    def cut(one: Message) -> Message:
        is_each = one.carries == "activations" or one.rounds >= whole
        is_each = is_each or (one.carries == "counts" and one.behind != "")
        return replace(
            one,
            per_step=one.per_step * (share if is_each else 1.0),
            rounds=min(one.rounds, float(num_micro_batches)),
        )

    messages = tuple(cut(one) for one in workload.messages)
    return replace(workload, num_micro_batches=num_micro_batches, messages=messages)


def played_numbers(workload: Workload, most_passes: int = MOST_PASSES) -> tuple[int, int]:
    """The numbers of micro batches to play: (m, m) for the whole step, or m1 and m2."""
    m, degree = workload.num_micro_batches, workload.degrees.get(workload.stages_axis, 1)
    stages = degree * workload.stages_per_rank
    most = max(most_passes // (2 * stages), FILLS * degree)
    if m <= most + degree:
        return m, m
    first = most // degree * degree + m % degree
    return first, first + degree


def step_of(
    workload: Workload, links: Links, most_passes: int = MOST_PASSES
) -> tuple[float, Step, Played]:
    """Seconds of a step, and the tasks that were played, of as many micro batches as need be."""
    first, second = played_numbers(workload, most_passes)
    step = build(shorter(workload, first), links)
    played = step.play()
    if second == first:
        return played.step_s, step, played
    more_s = build(shorter(workload, second), links).play().step_s - played.step_s
    rest = workload.num_micro_batches - first
    return played.step_s + rest * more_s / (second - first), step, played
