"""A plan: the search's best by the objective within the limits, explained term by term."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.plan.economy import Economy
from armillary.plan.grid import Column
from armillary.plan.price import price
from armillary.plan.ranking import OBJECTIVES, pareto, ranked, sweet_spot
from armillary.plan.scaling import Scaling
from armillary.plan.scouting import replicas_and_shards
from armillary.plan.search import search
from armillary.plan.software import Software
from armillary.plan.target import Target
from armillary.plan.terms import memory_of, terms_of
from armillary.plan.wish import Contenders, Found, Wish
from armillary.plan.workload import workload_of
from armillary.spec import Candidate, Machine, Plan, SpecError, nearest
from armillary.spec.quantities import short, span

MOST_ON_FRONTIER = 48
MOST_REASONS = 12
AS_GOOD = 1e-3
"""Within this share of each other two predictions are the same for any purpose."""
NEARLY_ALL = 7 / 8
"""With a number of devices given, a layout that uses fewer than this share is not for them."""
NEEDED = ("device.", "levels.", "storage.", "failures.", "price.", "pue", "node_power_w")
"""Numbers of a machine that a plan reads, by the beginning of their path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Contenders with what a step of each costs: with failures in all but `step_s` of theirs."""

    contenders: Contenders
    elapsed_s: Column
    device_hours: Column
    usd: Column
    energy_j: Column
    goodput: Column

    def cost(self, economy: Economy) -> Column:
        """What a cheaper layout has less of: dollars, or device hours where there is no price."""
        return self.usd if economy.has_price else self.device_hours

    def key(self, objective: str, economy: Economy) -> Column:
        """The column that an objective makes small."""
        return {
            "time": self.elapsed_s,
            "cost": self.cost(economy),
            "energy": self.energy_j if economy.has_power else self.device_hours,
            "memory": self.contenders.memory_bytes,
        }[objective]

    def candidate(self, found: Found, index: int) -> Candidate:
        """The contender as a document."""
        return Candidate(
            layout=found.layout(index),
            num_devices=int(self.contenders.num_devices[index]),
            predicted_step_s=float(self.contenders.step_s[index]),
            predicted_memory_bytes=float(self.contenders.memory_bytes[index]),
            predicted_device_hours=float(self.device_hours[index]),
            predicted_usd=float(self.usd[index]),
            predicted_energy_j=float(self.energy_j[index]),
            predicted_goodput=float(self.goodput[index]),
        )


def plan(target: Target, machine: Machine, software: Software, wish: Wish) -> Plan:
    """The plan for `target` on `machine` that serves `wish` best.

    Raises: `SpecError` if nothing serves it: what is asked is impossible, all is refused, nothing
    fits, or the limits cannot be kept.
    """
    check(wish, machine)
    economy = Economy.of(target.graph, machine, software, wish.precisions[0])
    _check_economy(wish, economy)
    found = search(target.graph, machine, software, wish)
    scored = score(found.contenders, economy)
    allowed = _allowed(scored, wish, economy)
    order = _ordered(scored, allowed, wish.objective, economy)
    best = int(order[0])
    alone = found.alone(best)
    priced = price(target.graph, machine, software, alone, global_batch_size=wish.global_batch_size)
    chosen = scored.candidate(found, best)
    scaling = Scaling(graph=target.graph, machine=machine, software=software, economy=economy)
    sweet = sweet_spot(scored.elapsed_s, scored.device_hours, wish.least_efficiency)
    return Plan(
        layout=chosen.layout,
        machine=machine.name,
        model=target.name,
        num_parameters=target.graph.num_parameters,
        num_devices=chosen.num_devices,
        num_given=wish.num_devices,
        global_batch_size=wish.global_batch_size,
        objective=wish.objective,
        predicted_step_s=chosen.predicted_step_s,
        predicted_memory_bytes=chosen.predicted_memory_bytes,
        memory_limit_bytes=float(machine.device.memory_bytes),
        best=chosen,
        terms=terms_of(target.graph, machine, software, alone, wish.global_batch_size),
        memory=memory_of(priced, software),
        survival=economy.survival(chosen.num_devices, chosen.predicted_step_s),
        runners_up=_runners_up(found, scored, order, wish.num_shown),
        frontier=tuple(scored.candidate(found, i) for i in _frontier(scored, economy)),
        sweet_spot=scored.candidate(found, sweet),
        scaling=(
            *scaling.strong(found, best, wish),
            *scaling.weak(alone, wish.global_batch_size),
        )
        if wish.scales
        else (),
        refused=found.refused[:MOST_REASONS],
        search=found.search,
        software=software.name,
        graph_sha256=target.sha256,
        num_steps=wish.limits.num_steps,
        bounds={k: v for k, v in machine.unknown.items() if k.startswith(NEEDED)},
        workload=workload_of(target.graph, machine, software, alone, wish.global_batch_size),
        machine_sha256=machine.sha256,
    )


def check(wish: Wish, machine: Machine) -> None:
    """Raise `SpecError` where the wish is impossible whatever the model."""
    if wish.objective not in OBJECTIVES:
        raise SpecError(
            "--objective",
            repr(wish.objective),
            f"an objective is one of {', '.join(OBJECTIVES)}",
            nearest(wish.objective, OBJECTIVES),
        )
    if not 1 <= wish.num_devices <= machine.num_ranks:
        raise SpecError(
            "--devices",
            f"{wish.num_devices:,}",
            f"{machine.name} has 1 to {machine.num_ranks:,} devices: {machine.num_nodes:,} nodes "
            f"of {machine.ranks_per_node}",
            f"use at most {machine.num_ranks:,}, or a larger machine (`armillary machines`)",
        )
    if wish.global_batch_size < 1:
        raise SpecError(
            "--batch",
            f"{wish.global_batch_size}",
            "a step takes at least one sample",
            "use a positive number of samples, such as --batch 1536",
        )
    for name in wish.precisions:
        machine.device.peak(name)


def _check_economy(wish: Wish, economy: Economy) -> None:
    limits = wish.limits
    if limits.are_set and limits.num_steps < 1:
        raise SpecError(
            "--deadline" if limits.deadline_s < np.inf else "--budget",
            "given without a length",
            "a whole training is so many steps, samples or epochs",
            "add --steps, --samples or --epochs",
        )
    if limits.budget_usd < np.inf and not economy.has_price:
        raise SpecError(
            "--budget",
            f"dollars on {economy.machine.name}, which has no price",
            "dollars are device hours times a price with a source",
            "state price.usd_per_device_hour in a machine file of your own "
            "(`armillary machines --template`), or use --deadline",
        )


def score(contenders: Contenders, economy: Economy) -> Scored:
    """What a step of each contender costs."""
    devices, step_s = contenders.num_devices, contenders.step_s
    goodput = economy.goodput(devices)
    with np.errstate(divide="ignore"):
        elapsed_s = step_s / goodput
    return Scored(
        contenders=contenders,
        elapsed_s=elapsed_s,
        device_hours=economy.device_hours(devices, step_s),
        usd=economy.usd(devices, step_s, contenders.busy_s),
        energy_j=economy.energy_j(devices, step_s, contenders.busy_s),
        goodput=goodput,
    )


def _allowed(scored: Scored, wish: Wish, economy: Economy) -> NDArray[np.bool_]:
    """Which contenders may be chosen: they keep the limits, and use what was given.

    Raises: `SpecError` if none keeps the limits.
    """
    allowed = np.ones(len(scored.contenders), dtype=bool)
    if wish.limits.are_set:
        allowed = wish.limits.kept(scored.elapsed_s, scored.usd)
        if not allowed.any():
            raise _nothing_in_limits(scored, wish)
    elif wish.uses_all and wish.objective != "time":
        most = scored.contenders.num_devices >= NEARLY_ALL * wish.num_devices
        allowed = most if most.any() else allowed
    return allowed


def _nothing_in_limits(scored: Scored, wish: Wish) -> SpecError:
    steps = wish.limits.num_steps
    fastest, cheapest = int(scored.elapsed_s.argmin()), int(scored.usd.argmin())
    found = (
        f"{steps:,} steps take at least {span(float(scored.elapsed_s[fastest]) * steps)} "
        f"(on {scored.contenders.num_devices[fastest]:,} devices)"
    )
    if wish.limits.budget_usd < np.inf:
        found += (
            f" and at least {short(float(scored.usd[cheapest]) * steps)} dollars "
            f"(on {scored.contenders.num_devices[cheapest]:,})"
        )
    wanted = [("--deadline", wish.limits.deadline_s), ("--budget", wish.limits.budget_usd)]
    return SpecError(
        next(name for name, value in wanted if value < np.inf),
        found,
        "a layout within the limits is the plan",
        "use more devices, a later deadline or a larger budget, or fewer steps",
    )


def _ordered(
    scored: Scored, allowed: NDArray[np.bool_], objective: str, economy: Economy
) -> NDArray[np.int64]:
    """The allowed contenders, the best first.

    Of those that are as good as the best, within `AS_GOOD`, the one on the fewest devices leads.
    """
    index = np.flatnonzero(allowed)
    key = scored.key(objective, economy)[index]
    as_good = key <= key.min() * (1.0 + AS_GOOD)
    devices = scored.contenders.num_devices[index].astype(np.float64)
    keys: list[Column] = [
        np.asarray(np.where(as_good, devices, np.inf)),
        key,
        scored.elapsed_s[index],
        scored.contenders.memory_bytes[index],
    ]
    leading = index[ranked(keys)]
    return np.concatenate([leading[:1], index[ranked([key, *keys[2:]])]])


def _runners_up(
    found: Found, scored: Scored, order: NDArray[np.int64], number: int
) -> tuple[Candidate, ...]:
    """The next best that cut the model otherwise; placements and choices of the same cut, and ways
    to hold shards, are told once.
    """
    seen = {_cut_of(found, int(order[0]))}
    kept: list[Candidate] = []
    for index in order[1:].tolist():
        if len(kept) >= number:
            break
        cut = _cut_of(found, index)
        if cut not in seen:
            seen.add(cut)
            kept.append(scored.candidate(found, index))
    return tuple(kept)


def _cut_of(found: Found, index: int) -> tuple[int, ...]:
    """The degrees of a contender, those of replicas and shards as one."""
    degrees = {name: int(column[0]) for name, column in found.alone(index).degrees.items()}
    outer, inner = replicas_and_shards()
    others = [degree for name, degree in degrees.items() if name not in (outer, inner)]
    return (degrees[outer] * degrees[inner], *others)


def _frontier(scored: Scored, economy: Economy) -> list[int]:
    """The contenders that none beats in time and in cost, energy or memory; by rising time."""
    against = [scored.cost(economy), scored.contenders.memory_bytes]
    if economy.has_power:
        against.append(scored.energy_j)
    kept: set[int] = set()
    for column in against:
        edge = pareto(scored.elapsed_s, column)
        spread = np.unique(np.linspace(0, len(edge) - 1, min(len(edge), MOST_ON_FRONTIER)))
        kept |= set(edge[spread.astype(np.int64)].tolist())
    return sorted(kept, key=lambda i: float(scored.elapsed_s[i]))
