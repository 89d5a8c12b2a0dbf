"""plan.html: one self-contained file about a plan, without scripts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from armillary.plan.figure import WIDE, Trace, figure
from armillary.plan.telling import (
    account,
    axes_of,
    brief,
    by_name,
    cost_of,
    elapsed_s,
    facts,
    headline,
    lowest,
    spaced,
)
from armillary.plan.terms import bytes_meaning, meaning
from armillary.spec import Candidate, Plan, ScalingPoint, WhyNot, page, write_atomically
from armillary.spec.plan import LEVELS
from armillary.spec.quantities import device_time, energy, short, size, span

KINDS = {"strong": "the same batch", "weak": "a batch that grows with the devices"}


def write_page(plan: Plan, path: Path) -> None:
    """Write the page of `plan` to `path`. It loads nothing from elsewhere."""
    write_atomically(path, render(plan))


def render(plan: Plan) -> str:
    """The page of `plan`."""
    time_rows = by_name(plan.terms, "predicted_s")
    memory_rows = by_name(plan.memory, "predicted_bytes")
    return page.render(
        "armillary.plan",
        plan=plan,
        levels=LEVELS,
        family=plan.model.partition(":")[0],
        sizes=plan.model.partition(":")[2].replace(",", ", "),
        headline=headline(plan),
        tiles=_tiles(plan),
        facts=[(topic, words) for topic, words in facts(plan) if topic != "layout"],
        time=_levels(time_rows, plan.predicted_step_s, span, meaning),
        memory=_levels(memory_rows, plan.predicted_memory_bytes, size, bytes_meaning),
        sources=[
            {"name": meaning(t.name), "level": t.level, "source": t.source} for t in plan.terms
        ]
        + [
            {"name": bytes_meaning(t.name), "level": t.level, "source": t.source}
            for t in plan.memory
        ],
        ranked=[_row(plan.best, spaced(plan.layout))]
        + [_row(one, brief(one.layout, plan.layout)) for one in plan.runners_up],
        has_usd=bool(plan.best.predicted_usd),
        has_energy=bool(plan.best.predicted_energy_j),
        frontier=_frontier(plan),
        sweet=_sweet(plan),
        scaling=_scaling(plan),
        answers=[_answer(answer, plan) for answer in plan.why_not],
        account=account(plan),
        json=plan.to_json(),
    )


def _tiles(plan: Plan) -> list[tuple[str, str, str]]:
    """Label, value, and a word about it."""
    best = plan.best
    filled = 100 * plan.predicted_memory_bytes / plan.memory_limit_bytes
    speed = plan.global_batch_size / plan.predicted_step_s
    tiles = [
        ("predicted step", span(plan.predicted_step_s), f"{plan.global_batch_size:,} samples"),
        ("samples per second", short(float(speed)), "without failures"),
        ("devices", f"{plan.num_devices:,}", f"of {plan.num_given:,} given"),
        ("memory", size(plan.predicted_memory_bytes), f"{filled:.0f} % of the fullest device"),
        ("device time", device_time(best.predicted_device_hours), "a step"),
    ]
    if best.predicted_energy_j:
        tiles.append(("energy", energy(best.predicted_energy_j), "a step, at the meter"))
    if plan.survival is not None and plan.survival.between_failures_s:
        share = f"{100 * plan.survival.predicted_goodput:.1f} %"
        saves = f"saving every {span(plan.survival.interval_s)}"
        is_known = plan.survival.predicted_checkpoint_s > 0
        tiles.append(("goodput", share, saves if is_known else "saving in no time"))
    return tiles


def _levels(
    rows: Sequence[tuple[str, dict[str, float]]],
    whole: float,
    in_words: Callable[[float], str],
    name_of: Callable[[str], str],
) -> dict[str, Any]:
    """Rows of a table of terms by level, and its last row."""
    most = max((sum(parts.values()) for _, parts in rows), default=1.0)
    shown = [
        {
            "name": name_of(name),
            "cells": [in_words(parts[level]) if parts.get(level) else "" for level in LEVELS],
            "widths": [
                (level, round(100 * parts[level] / most, 2)) for level in LEVELS if level in parts
            ],
            "share": f"{100 * sum(parts.values()) / whole:.1f} %",
        }
        for name, parts in rows
    ]
    totals = [sum(parts.get(level, 0.0) for _, parts in rows) for level in LEVELS]
    cells = [f"{in_words(total)}, {100 * total / whole:.0f} %" for total in totals]
    return {"rows": shown, "whole": {"words": in_words(whole), "cells": cells}}


def _row(one: Candidate, layout: str) -> dict[str, str]:
    return {
        "step": span(one.predicted_step_s),
        "devices": f"{one.num_devices:,}",
        "memory": size(one.predicted_memory_bytes),
        "hours": device_time(one.predicted_device_hours),
        "usd": short(one.predicted_usd),
        "energy": energy(one.predicted_energy_j),
        "layout": layout,
    }


def _sweet(plan: Plan) -> str:
    one = plan.sweet_spot
    if one is None:
        return ""
    said = f"{span(elapsed_s(one))} a step on {one.num_devices:,} devices, {cost_of(one)}"
    return f"{brief(one.layout, plan.layout)}: {said}"


def _frontier(plan: Plan) -> list[tuple[str, str]]:
    """A title and a drawing for each thing that time is told against."""
    found = []
    for title, name, scale in axes_of(plan):
        points = {
            (getattr(one, name) * scale, elapsed_s(one)): one
            for one in plan.frontier
            if getattr(one, name) > 0
        }
        edge = lowest(list(points))
        if len(edge) < 2:
            continue
        told = [f"{span(y)}, {short(x)} {title}: {points[x, y].layout}" for x, y in edge]
        traces = [Trace(x=[x for x, _ in edge], y=[y for _, y in edge], kind="first", told=told)]
        for one, kind in ((plan.sweet_spot, "sweet"), (plan.best, "chosen")):
            if one is not None and getattr(one, name) > 0:
                at = getattr(one, name) * scale
                traces.append(
                    Trace(x=[at], y=[elapsed_s(one)], kind=kind, told=[f"{kind}: {one.layout}"])
                )
        found.append((title, figure(traces, x_label=title, y_label="seconds a step")))
    return found


def _scaling(plan: Plan) -> dict[str, Any] | None:
    figures, tables = [], []
    for kind, title in KINDS.items():
        points = [point for point in plan.scaling if point.kind == kind]
        if len(points) > 1:
            figures += _scaling_figures(points, title)
            tables.append((f"{title}: {len(points)} points", [_point(p, plan) for p in points]))
    return {"figures": figures, "tables": tables} if figures else None


def _scaling_figures(points: Sequence[ScalingPoint], title: str) -> list[tuple[str, str, str]]:
    devices = [float(point.num_devices) for point in points]
    speed = [point.global_batch_size / point.predicted_step_s for point in points]
    told = [f"{p.num_devices:,} devices, {span(p.predicted_step_s)}: {p.layout}" for p in points]
    each = max(s / d for s, d in zip(speed, devices, strict=True))
    ideal = [each * number for number in devices]
    percent = [100 * point.predicted_efficiency for point in points]
    real = [
        share * point.predicted_goodput / (1 + point.predicted_straggler_s / point.predicted_step_s)
        for share, point in zip(percent, points, strict=True)
    ]
    drawn = [
        Trace(x=devices, y=ideal, kind="faint", dots=False),
        Trace(x=devices, y=speed, kind="first", told=told),
    ]
    shares = [
        Trace(x=devices, y=percent, kind="first", told=told),
        Trace(x=devices, y=real, kind="second", told=told),
    ]
    return [
        (
            title,
            "dashed: ideal",
            figure(drawn, y_label="samples a second", x_label="devices", size=WIDE),
        ),
        (
            "its efficiency",
            "orange: with slow ranks and failures",
            figure(shares, y_label="efficiency, %", log_y=False, x_label="devices", size=WIDE),
        ),
    ]


def _point(point: ScalingPoint, plan: Plan) -> dict[str, Any]:
    cells = [
        f"{point.num_devices:,}",
        f"{point.global_batch_size:,}",
        span(point.predicted_step_s),
        f"{100 * point.predicted_efficiency:.0f} %",
        span(point.predicted_latency_s),
        f"+{span(point.predicted_straggler_s)}",
        f"{100 * point.predicted_goodput:.1f} %",
    ]
    return {"cells": cells, "layout": brief(point.layout, plan.layout)}


def _answer(answer: WhyNot, plan: Plan) -> dict[str, Any]:
    return {
        "asked": answer.asked,
        "verdict": answer.verdict,
        "reasons": answer.reasons,
        "layout": brief(answer.candidate.layout, plan.layout) if answer.candidate else "",
        "differences": [
            (meaning(name), ("+" if seconds > 0 else "−") + span(abs(seconds)))
            for name, seconds in answer.slower_s.items()
            if abs(seconds) > 1e-3 * plan.predicted_step_s
        ],
    }
