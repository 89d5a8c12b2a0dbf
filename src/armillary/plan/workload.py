"""A layout's step as a document that can be played: passes of every stage, messages, constants."""

from dataclasses import replace
from typing import Any

import numpy as np

from armillary.axes import Axis, discover
from armillary.axes.stages.balance import stages_per_rank
from armillary.plan.folding import fold
from armillary.plan.grid import Grid
from armillary.plan.lanes import Learnt
from armillary.plan.memory import bytes_by_category
from armillary.plan.messages import price_messages, scale, sent_by
from armillary.plan.offload import is_used
from armillary.plan.passes import again_s
from armillary.plan.price import (
    head_blocks,
    hidden_inside,
    micro_batches,
    once_a_step,
    price,
    price_parts_of,
)
from armillary.plan.software import Software
from armillary.plan.stages import Dealt, deal
from armillary.plan.terms import only
from armillary.plan.work import Parts
from armillary.spec import Machine, ModelGraph
from armillary.spec.workload import Message, StageWork, Workload

MOST_TAKEN = 0.9
"""The share of a device that messages take at most while they run: passes never stand still."""


def workload_of(
    graph: ModelGraph, machine: Machine, software: Software, alone: Grid, global_batch_size: int
) -> Workload:
    """What a step of the one layout of `alone` asks of ranks and links, as `price` counts it.

    Raises: `SpecError` as `price` does.
    """
    folded = fold(graph)
    parts = price_parts_of(folded, machine, software, alone)
    micro, _, _ = micro_batches(graph, alone, software, global_batch_size)
    dealt = deal(alone, max(parts.num_blocks, 1), head_blocks(parts), software.deals)
    memory = bytes_by_category(graph, parts, dealt, software, alone, micro)
    once = once_a_step(graph, memory, machine, software, alone)
    priced = price(graph, machine, software, alone, global_batch_size=global_batch_size)
    moved_s = only(priced.terms["offload"]) if is_used(alone) else 0.0  # and not hidden
    slowdown, rest_s = _slowdown(folded, machine, software, alone, global_batch_size)
    rest_s = min(rest_s, only(priced.terms["contention"]))
    schedule, option = alone.schedules[0]
    axes = discover()
    degrees = {a: int(alone.degrees[a][0]) for a in alone.orders[0] if a in alone.degrees}
    degrees = {a: d for a, d in degrees.items() if d > 1}
    crossing = [a for a in degrees if axes[a].splits_module]
    return Workload(
        degrees=degrees,
        stages_axis=crossing[0] if crossing else "",
        batch_axes=tuple(a for a in degrees if axes[a].splits_batch),
        schedule=schedule,
        stages_per_rank=stages_per_rank(schedule, option) if crossing else 1,
        num_micro_batches=round(only(micro)),
        stages=_stages(parts, dealt, alone),
        messages=tuple(
            message
            for name in degrees
            for message in _messages(axes[name], folded, software, alone, global_batch_size)
        ),
        update_s=only(once["optimiser"]),
        step_s=only(once["step"]) + moved_s + rest_s,
        micro_batch_s=software.micro_batch_s,
        message_launch_s=software.message_launch_s,
        slowdown=slowdown,
        exposes_sends=software.exposes_sends,
        spread=software.spread,
    )


def _slowdown(
    folded: ModelGraph, machine: Machine, software: Software, alone: Grid, global_batch_size: int
) -> tuple[float, float]:
    """The share of the device that messages beside passes take while they run, and the seconds of a
    step that they take of it besides, where that is more than `MOST_TAKEN`.
    """
    messages = price_messages(folded, Learnt.of(machine), software, alone, global_batch_size)
    beside = [kind for kind in messages.seconds if kind[2] in ("forward", "backward")]
    beside = [kind for kind in beside if kind[1] not in ("activations", "counts")]
    seconds = sum(only(messages.seconds[kind]) for kind in beside)
    size = sum(only(messages.bytes[kind]) for kind in beside)
    if not seconds:
        return 0.0, 0.0
    taken_s = software.slowdown * size / machine.device.memory_bytes_per_s
    share = min(taken_s / seconds, MOST_TAKEN)
    return share, taken_s - share * seconds


def _stages(parts: Parts, dealt: Dealt, alone: Grid) -> tuple[StageWork, ...]:
    """The stages of all ranks in order, successive ones that are alike as one."""
    schedule, option = alone.schedules[0]
    ranks = round(only(alone.stages))
    number = ranks * (stages_per_rank(schedule, option) if ranks > 1 else 1)
    few, most, last = (only(blocks) for blocks in dealt.stage_blocks)
    fuller_from = round(only(dealt.fuller_from))
    asked = [few, *(few if stage < fuller_from else most for stage in range(1, number))]
    asked[-1] = last if number > 1 else few
    again = only(again_s(parts, alone))
    share = only(dealt.middle.before)  # of what is before the blocks, where all ranks hold some
    found: list[StageWork] = []
    for index, blocks in enumerate(_dealt_out(asked, max(parts.num_blocks, 1))):
        before = share * ranks / number or float(index == 0)
        after = share * ranks / number or float(index == number - 1)
        one = _stage(parts, blocks, before, after, again)
        if found and _alike(found[-1], one):
            found[-1] = _counted(found[-1])
        else:
            found.append(one)
    return tuple(found)


def _dealt_out(asked: list[float], num_blocks: int) -> list[int]:
    """Whole blocks of every stage, as many as there are: what is amiss is taken where most is, and
    given where least is, of all stages but the last.
    """
    found = [max(round(one), 0) for one in asked]
    others = range(max(len(found) - 1, 1))
    while (amiss := sum(found) - num_blocks) != 0:
        if amiss > 0:
            found[max(others, key=lambda s: (found[s], s))] -= 1
        else:
            found[min(others, key=lambda s: (found[s], s))] += 1
    return found


def _stage(parts: Parts, blocks: float, before: float, after: float, again: float) -> StageWork:
    def total(name: str) -> float:
        share = blocks / max(parts.num_blocks, 1)
        found = share * only(getattr(parts.blocks, name))
        found += before * only(getattr(parts.before, name))
        return found + after * only(getattr(parts.after, name))

    forward_launch_s = total("forward_launch_s")
    return StageWork(
        forward_s=total("forward_s"),
        backward_input_s=total("backward_input_s"),
        backward_weight_s=total("backward_weight_s"),
        again_s=blocks * again,
        forward_launch_s=forward_launch_s,
        backward_launch_s=total("backward_launch_s") + forward_launch_s * (again > 0),
        num_blocks=float(blocks),
    )


def _alike(one: StageWork, other: StageWork) -> bool:
    return replace(one, num_stages=1) == replace(other, num_stages=1)


def _counted(one: StageWork) -> StageWork:
    return replace(one, num_stages=one.num_stages + 1)


def _messages(
    axis: Axis, folded: ModelGraph, software: Software, alone: Grid, batch: int
) -> list[Message]:
    """The messages of one axis, as they are sent in the layout's precision."""
    found = []
    for one in sent_by(axis, folded, software, alone, batch, {}):
        sent = one.transfer
        size = only(one.bytes) * only(scale(sent, folded, software, alone))
        if size <= 0 or only(one.per_step) <= 0:
            continue
        shares = {"gradients": software.hides_gradients, "parameters": software.hides_gathers}
        found.append(
            Message(
                axis=axis.name,
                collective=sent.collective,
                group=tuple(sent.group),
                carries=sent.carries,
                behind=sent.hidden_behind,
                bytes=size,
                per_step=only(one.per_step),
                rounds=_rounds(one.rounds),
                hidden=shares.get(sent.carries, hidden_inside(axis, software)),
                crosses_stages=axis.splits_module,
            )
        )
    return found


def _rounds(rounds: Any) -> float:
    return max(float(np.max(rounds)), 1.0)
