"""A plan rehearsed: its step played, its distribution sampled, its days run, its links told."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from armillary.core import failures
from armillary.core.chance import run_goodput
from armillary.core.play import Played
from armillary.rehearse.accounts import critical_of, loads_of, scaled, terms_of
from armillary.rehearse.congestion import Congestion
from armillary.rehearse.jitter import Jitter, sampled_steps
from armillary.rehearse.links import Links
from armillary.rehearse.periods import step_of
from armillary.rehearse.step import Step
from armillary.rehearse.whatif import what_ifs
from armillary.rehearse.why import why
from armillary.spec import Machine, Plan, Survival
from armillary.spec.quantities import span
from armillary.spec.rehearsal import Distribution, Endurance, Rehearsal, WhatIf
from armillary.spec.workload import Workload

NUM_RUNS = 200
"""Runs of days that are played for the distribution of goodput."""
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of a rehearsal besides the step; `num_samples` 0 leaves jitter out.

    `changes` are what-ifs, `flows` says that collectives share the links flow by flow.
    """

    jitter: Jitter
    jitter_words: str = ""
    num_samples: int = 64
    seed: int = 0
    days: float = 0.0
    changes: bool = True
    flows: bool = True


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """A rehearsal, and the tasks behind it, for a page or a trace."""

    rehearsal: Rehearsal
    step: Step
    played: Played
    congestion: Congestion | None = None


def rehearse(
    plan: Plan, workload: Workload, machine: Machine, wanted: Wanted, progress: Progress
) -> Rehearsed:
    """The rehearsal of `plan` on `machine`; `progress` is told what is being done.

    Raises: `SpecError` if the machine cannot hold the ranks, or a schedule cannot be played.
    """
    started_s = time.perf_counter()
    progress("the step")
    congestion = Congestion(machine=machine, num_ranks=prod(workload.degrees.values()))
    chosen = congestion if wanted.flows else None
    links = Links(machine, workload.degrees, wanted.jitter.background, chosen)
    step_s, step, played = step_of(workload, links)
    played_s = time.perf_counter() - started_s
    factor = step_s / played.step_s if played.step_s else 1.0
    critical = scaled(critical_of(step, played), factor)
    loads = loads_of(step, played)
    changes = list(_changes(workload, machine, wanted, chosen, step_s, progress))
    distribution = _distribution(step, played, wanted, factor, progress)
    if distribution is not None:
        changes += _less_jitter(step, played, wanted, distribution, step_s, factor)
    progress("days of failures")
    return Rehearsed(
        rehearsal=Rehearsal(
            model=plan.model,
            machine=machine.name,
            layout=plan.layout,
            num_devices=plan.num_devices,
            predicted_step_s=step_s,
            planned_step_s=plan.predicted_step_s,
            terms=terms_of(step, played, step_s),
            critical=critical,
            loads=loads,
            distribution=distribution,
            endurance=_endurance(plan.survival, distribution, step_s, wanted),
            what_ifs=tuple(changes),
            why=tuple(why(step, played, critical, loads, changes, step_s)),
            num_played=sum(len(ranks) for ranks in step.players),
            num_tasks=len(step.tasks),
            num_micro_batches=workload.num_micro_batches,
            num_micro_batches_played=step.workload.num_micro_batches,
            played_s=played_s,
        ),
        step=step,
        played=played,
        congestion=chosen,
    )


def _changes(
    workload: Workload,
    machine: Machine,
    wanted: Wanted,
    congestion: Congestion | None,
    step_s: float,
    progress: Progress,
) -> Sequence[WhatIf]:
    if not wanted.changes or not workload.messages:
        return ()
    found = []
    for one in what_ifs(workload, machine, wanted.jitter.background, congestion, step_s):
        progress(one.words)
        found.append(one)
    return found


def _distribution(
    step: Step, played: Played, wanted: Wanted, factor: float, progress: Progress
) -> Distribution | None:
    if not wanted.num_samples:
        return None
    progress(f"{wanted.num_samples} steps with jitter")
    steps = factor * sampled_steps(step, played, wanted.jitter, wanted.num_samples, wanted.seed)
    return Distribution(
        num_samples=wanted.num_samples,
        seed=wanted.seed,
        predicted_median_s=float(np.median(steps)),
        predicted_p99_s=float(np.quantile(steps, 0.99)),
        predicted_least_s=float(steps.min()),
        predicted_most_s=float(steps.max()),
        jitter=wanted.jitter_words,
    )


def _less_jitter(
    step: Step,
    played: Played,
    wanted: Wanted,
    distribution: Distribution,
    step_s: float,
    factor: float,
) -> list[WhatIf]:
    """The median step with half the jitter, as far below the predicted step as it is less."""
    if distribution.predicted_median_s <= step_s * (1 + 1e-9):
        return []
    number = min(wanted.num_samples, 8)
    half = sampled_steps(step, played, wanted.jitter.scaled(0.5), number, wanted.seed)
    words = f"half the jitter (its median is then {span(float(np.median(half)) * factor)})"
    saved_s = distribution.predicted_median_s - float(np.median(half)) * factor
    return [WhatIf(words=words, predicted_step_s=step_s - saved_s, jitter=0.5)]


def _endurance(
    survival: Survival | None, distribution: Distribution | None, step_s: float, wanted: Wanted
) -> Endurance | None:
    """What failures leave of the days that were asked for."""
    if not wanted.days or survival is None:
        return None
    between_s = survival.between_failures_s or np.inf
    interval_s = survival.interval_s or np.inf
    each_s = distribution.predicted_median_s if distribution else step_s
    share, failed = run_goodput(
        step_s=each_s,
        days=wanted.days,
        between_s=between_s,
        interval_s=interval_s,
        checkpoint_s=survival.predicted_checkpoint_s,
        restart_s=survival.restart_s,
        num_runs=NUM_RUNS,
        rng=np.random.default_rng(wanted.seed),
    )
    closed = failures.goodput(
        interval_s, survival.predicted_checkpoint_s, survival.restart_s, between_s
    )
    low, middle, high = np.quantile(share, (0.05, 0.5, 0.95))
    return Endurance(
        days=wanted.days,
        num_runs=NUM_RUNS,
        predicted_goodput=float(middle),
        predicted_low=float(low),
        predicted_high=float(high),
        predicted_failures=float(failed.mean()),
        closed_form=float(closed),
        num_steps=int(middle * wanted.days * 86400.0 / each_s),
    )
