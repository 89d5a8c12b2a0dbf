"""What holds a step, in words: the critical path, the links, and what would shorten it."""

from collections.abc import Iterator, Sequence

from armillary.core.play import Played
from armillary.rehearse.accounts import Key, shared_wire_s
from armillary.rehearse.step import Step
from armillary.spec.quantities import size, span
from armillary.spec.rehearsal import LinkLoad, Share, WhatIf

WORTH_TELLING = 0.005
MUCH_SLOWER = 1.02
MOST_SHARES, MOST_CURES = 4, 4
COMPUTING = ("forward", "backward", "recompute", "update", "step", "launch")


def why(
    step: Step,
    played: Played,
    critical: Sequence[Share],
    loads: Sequence[LinkLoad],
    what_ifs: Sequence[WhatIf],
    predicted_s: float,
) -> Iterator[str]:
    """Sentences, the most important first."""
    whole = sum(one.predicted_s for one in critical) or 1.0
    passes = [one for one in critical if one.name in COMPUTING]
    sent = [one for one in critical if one.name not in COMPUTING]
    told = ", ".join(
        f"{100 * one.predicted_s / whole:.0f} % {one.name}" for one in passes[:MOST_SHARES]
    )
    share = sum(one.predicted_s for one in passes) / whole
    yield f"{100 * share:.0f} % of the critical path is computing: {told}"
    if not sent:
        yield "no message is on the critical path"
    for one in sent[:MOST_SHARES]:
        if one.predicted_s > WORTH_TELLING * whole:
            yield _held(one, whole)
    yield from _contended(step, played)
    for load in loads:
        if load.busiest > 0.5:
            yield (
                f"the links of the {load.level} level ({load.network}) are busy "
                f"{100 * load.busiest:.0f} % of the step where they are fullest"
            )
    yield from _cures(what_ifs, predicted_s)


def _held(one: Share, whole: float) -> str:
    names = " and ".join(one.collectives) or "messages"
    where = f" across the {one.level} level" if one.level else ""
    sizes = f", {size(one.bytes)} a rank on the path" if one.bytes else ""
    return (
        f"{names} of {one.name}{where} hold{'s' if len(one.collectives) == 1 else ''} "
        f"{100 * one.predicted_s / whole:.1f} % of it ({span(one.predicted_s)}{sizes})"
    )


def _contended(step: Step, played: Played) -> Iterator[str]:
    levels = step.links.machine.levels
    slower: list[tuple[float, Key]] = []
    for key, (alone_s, took_s) in shared_wire_s(step, played).items():
        if took_s > MUCH_SLOWER * alone_s and took_s - alone_s > WORTH_TELLING * played.step_s:
            slower.append((took_s / alone_s, key))
    for factor, key in sorted(slower, key=lambda one: -one[0]):
        where = f" across the {levels[key.level].name} level" if key.level >= 0 else ""
        yield (
            f"{key.name}{where} share their links with other messages and take "
            f"{factor:.2f} times as long as alone"
        )


def _cures(what_ifs: Sequence[WhatIf], predicted_s: float) -> Iterator[str]:
    better = [one for one in what_ifs if one.predicted_step_s < predicted_s * (1 - WORTH_TELLING)]
    better.sort(key=lambda one: one.predicted_step_s)
    for one in better[:MOST_CURES]:
        saved = 1 - one.predicted_step_s / predicted_s
        told = f"{span(one.predicted_step_s)}, {100 * saved:.1f} % less"
        yield f"what would shorten it: {one.words} ({told})"
    if not better and any(one.network != 1.0 for one in what_ifs):
        yield "neither faster links nor another placement of the axes would shorten it"
