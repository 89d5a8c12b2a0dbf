"""Seconds of collectives that share the network at one time, flow by flow.

The closed forms (`networks.seconds`) say how a library goes about a collective and what its steps
cost; here what each rank sends shares the links of the machine with all else that is sent, and the
time of the wire is when its last byte has arrived.
"""

# Shapes: G groups of one burst, N ranks of a group, L links
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from armillary.core.flows import Played, play
from armillary.networks.burst import Burst, Contended, LevelLoad, Ranks
from armillary.networks.fabric import Fabric
from armillary.networks.folding import folds
from armillary.networks.lying import Lying, group_members
from armillary.networks.messages import Sending, together
from armillary.networks.routing import routes
from armillary.spec import SpecError
from armillary.spec.machine import Machine

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def contended_seconds(
    machine: Machine,
    bursts: Sequence[Burst],
    *,
    num_ranks: int = 0,
    placement: Ranks | None = None,
    background: float = 0.0,
    seed: int = 0,
    tolerance: float = 0.02,
    fold: bool = True,
) -> Contended:
    """Seconds of each of `bursts`, all started at once by a job of `num_ranks` ranks (0: all).

    `placement` is the machine's rank on which each rank of the job runs, of shape [num_ranks]; in
    the machine's order where it is not given. `background` is the share of the links between nodes
    that other jobs take. The same `seed` gives the same answer, which is not too short, and too
    long by the `tolerance` at most: ends that are so near to each other are one event. `fold`:
    groups that are just like others are not played again (`networks/folding.py` has the rules).

    Raises: `SpecError` on a job that is larger than the machine or a collective that is not known.
    """
    slots = _slots(machine, num_ranks, placement, background)
    fabric = Fabric(machine, background)
    lying: list[Lying] = []
    team = 0
    for burst in bursts:
        lying.append(Lying(fabric, burst, slots[group_members(burst, slots.size)], team))
        team += lying[-1].num_groups
    if fold:
        sends = [one for one in lying if one.classes]
        for one, alike in zip(sends, folds([s.slots for s in sends], fabric.island), strict=True):
            one.fold = alike
    parts = [some for one in lying for some in one.sending()]
    if not parts:
        return _answer(fabric, lying, np.zeros(team), None)
    sent = together(parts)
    ways = routes(fabric, sent, seed)
    played = play(ways, fabric.capacity, sent.amount, sent.team, sent.turn, tolerance)
    wire_s = np.zeros(team)
    np.maximum.at(wire_s, sent.team, played.finish_s)
    held_by = _held_by(fabric, lying, sent, played)
    return _answer(fabric, lying, wire_s, (sent, played, held_by))


def _slots(machine: Machine, num_ranks: int, placement: Ranks | None, background: float) -> Ranks:
    """The machine's rank of each rank of the job."""
    slots = np.arange(num_ranks or machine.num_ranks) if placement is None else placement
    if slots.size > machine.num_ranks or slots.max(initial=0) >= machine.num_ranks:
        raise SpecError(
            "num_ranks",
            f"{max(slots.size, int(slots.max(initial=0)) + 1)}",
            f"{machine.name} has {machine.num_ranks} ranks",
            "take fewer ranks or another machine",
        )
    if not 0 <= background < 1:
        raise SpecError(
            "background",
            f"{background}",
            "other jobs take a share of the links from 0 to below 1",
            "give such a share",
        )
    return np.asarray(slots, np.int64)


def _answer(
    fabric: Fabric,
    lying: Sequence[Lying],
    wire_s: Array,
    played: tuple[Sending, Played, tuple[str, ...]] | None,
) -> Contended:
    found = [one.seconds(wire_s[one.team]) for one in lying]
    return Contended(
        seconds=np.array([some.max(initial=0.0) for some in found]),
        closed_form_s=np.array([one.closed_s.max(initial=0.0) for one in lying]),
        group_seconds=tuple(found),
        held_by=("",) * len(lying) if played is None else played[2],
        loads=() if played is None else _loads(fabric, lying, *played[:2]),
    )


def _loads(
    fabric: Fabric, lying: Sequence[Lying], sent: Sending, played: Played
) -> tuple[LevelLoad, ...]:
    """What each level's links carried, and how full they were while the bursts lasted."""
    end_s = max(float(played.finish_s.max(initial=0.0)), 1e-300)
    stands_for = np.concatenate([one.stands_for() for one in lying])[sent.team]
    trips = sent.messages
    bytes = (sent.bytes * stands_for)[trips.flow] * trips.share
    by_level = np.bincount(trips.level, bytes, len(fabric.parts))
    used = np.flatnonzero(played.carried > 0)
    full = played.carried[used] / (fabric.capacity[used] * end_s)
    level = fabric.level_of(used)
    found = []
    for part in fabric.parts:
        here = full[level == part.index]
        found.append(
            LevelLoad(
                level=part.level.name,
                bytes=float(by_level[part.index]),
                busiest=float(here.max(initial=0.0)),
                mean=float(here.mean()) if here.size else 0.0,
                num_links=fabric.num_links_of(part),
                num_played=here.size,
            )
        )
    return tuple(found)


def _held_by(
    fabric: Fabric, lying: Sequence[Lying], sent: Sending, played: Played
) -> tuple[str, ...]:
    """The level of the last message of each burst."""
    found = []
    level = np.full(sent.num_flows, -1)
    np.maximum.at(level, sent.messages.flow, sent.messages.level)
    for one in lying:
        ours = (sent.team >= one.team.start) & (sent.team < one.team.stop)
        if not ours.any():
            found.append("")
            continue
        last = int(np.argmax(np.where(ours, played.finish_s, -1.0)))
        found.append(fabric.parts[int(level[last])].level.name)
    return tuple(found)
