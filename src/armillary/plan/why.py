"""Why not another layout: the best of those asked about, beside the one that was chosen."""

from dataclasses import replace

from armillary.plan.choices import Fixed
from armillary.plan.planning import plan
from armillary.plan.ranking import Limits
from armillary.plan.software import Software
from armillary.plan.target import Target
from armillary.plan.wish import Wish
from armillary.spec import Machine, Plan, Refused, SpecError, Term, WhyNot
from armillary.spec.quantities import short, size, span

CLOSE = 1.005
"""Within this factor two predicted times are the same for any purpose."""
TOLD = 1e-3
"""Differences below this share of a step are not told."""


def why_not(
    asked: str, chosen: Plan, target: Target, machine: Machine, software: Software, wish: Wish
) -> WhyNot:
    """The best layout with the degrees and words of `asked`, by the same objective, and how it
    differs from the chosen one; or why there is none.

    Raises: `SpecError` if `asked` is not made of words of a layout.
    """
    named = Fixed.parse(asked)
    fixed = Fixed(
        degrees={**wish.fixed.degrees, **named.degrees}, words={**wish.fixed.words, **named.words}
    )
    try:
        other = plan(
            target, machine, software, replace(wish, fixed=fixed, limits=Limits(), scales=False)
        )
    except SpecError as error:
        reason = Refused(count=1, example=asked, **error.to_dict())
        return WhyNot(asked=asked, reasons=(reason,), verdict=f"it is refused: {error.found}")
    slower = _differences(other.terms, chosen.terms, "predicted_s")
    larger = _differences(other.memory, chosen.memory, "predicted_bytes")
    return WhyNot(
        asked=asked,
        candidate=other.best,
        slower_s=slower,
        larger_bytes=larger,
        verdict=_verdict(other, chosen, slower),
    )


def _differences(
    others: tuple[Term, ...], chosen: tuple[Term, ...], number: str
) -> dict[str, float]:
    """By term how much more the other has, the largest difference first; equal ones left out."""
    found: dict[str, float] = {}
    for terms, sign in ((others, 1.0), (chosen, -1.0)):
        for term in terms:
            found[term.name] = found.get(term.name, 0.0) + sign * getattr(term, number)
    ordered = sorted(found.items(), key=lambda item: -abs(item[1]))
    return {name: value for name, value in ordered if value}


def _verdict(other: Plan, chosen: Plan, slower: dict[str, float]) -> str:
    factor = other.predicted_step_s / chosen.predicted_step_s
    if other.layout == chosen.layout:
        return "it is the layout that was chosen"
    where = f"{other.num_devices:,} devices" if other.num_devices != chosen.num_devices else ""
    said = f" on {where}" if where else ""
    if factor < CLOSE and other.predicted_memory_bytes <= chosen.predicted_memory_bytes:
        return f"it is as fast{said} and no larger: {chosen.objective} or chance decides"
    if factor < 1 / CLOSE:
        return f"it is {short(1 / factor)} times faster{said}; {chosen.objective} decides otherwise"
    if factor < CLOSE:
        more = other.predicted_memory_bytes - chosen.predicted_memory_bytes
        return f"it is as fast{said} and takes {size(more)} more memory"
    least_s = TOLD * chosen.predicted_step_s
    worst = [f"{name} +{span(s)}" for name, s in slower.items() if s > least_s][:3]
    return f"it is {short(factor)} times slower{said}: {', '.join(worst)}"
