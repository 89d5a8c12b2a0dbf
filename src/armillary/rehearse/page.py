"""rehearsal.html: one self-contained file about a rehearsal; its script loads nothing."""

from pathlib import Path
from typing import Any

from armillary.rehearse.comparing import rows, summary
from armillary.rehearse.gantt import CLASSES, gantt
from armillary.rehearse.memory import drawing
from armillary.rehearse.rehearsing import Rehearsed
from armillary.rehearse.request import RehearsalRequest
from armillary.rehearse.telling import facts, headline, name_of
from armillary.rehearse.whatif import JITTERS, NETWORKS, grid, placements
from armillary.spec import page, write_atomically
from armillary.spec.quantities import span
from armillary.spec.rehearsal import Rehearsal

PLAIN = {"forward": "forward", "backward": "backward", "recompute": "weights", "bubble": "bubble"}
MOST_UNITS = 64
DIGITS = 7


def write_page(found: Rehearsed, request: RehearsalRequest, path: Path) -> None:
    """Write the page of a rehearsal to `path`."""
    write_atomically(path, render(found, request))


def render(found: Rehearsed, request: RehearsalRequest) -> str:
    """The page of a rehearsal."""
    told = found.rehearsal
    return page.render(
        "armillary.rehearse",
        told=told,
        headline=headline(told),
        tiles=_tiles(told),
        facts=list(facts(told)),
        terms=_terms(told),
        classes=CLASSES,
        gantt=_drawn(found),
        loads=_loads(told),
        changes=_changes(told),
        sliders=_sliders(found, request),
        memory=drawing(told, request.plan),
        compared=summary(told),
        differences=list(rows(told.differences)),
        json=told.to_json(),
    )


def _tiles(told: Rehearsal) -> list[tuple[str, str, str]]:
    """Label, value, and a word about it."""
    ratio = told.predicted_step_s / told.planned_step_s
    found = [
        ("a step", span(told.predicted_step_s), f"{100 * ratio:.1f} % of the plan's"),
        ("devices", f"{told.num_devices:,}", f"{told.num_played:,} played for all"),
    ]
    spread = told.distribution
    if spread is not None:
        found += [
            ("with jitter", span(spread.predicted_median_s), "median"),
            ("99 % within", span(spread.predicted_p99_s), f"of {spread.num_samples:,} steps"),
        ]
    days = told.endurance
    if days is not None:
        words = f"of {days.days:g} days, {days.predicted_failures:.0f} failures"
        found.append(("in steps that count", f"{100 * days.predicted_goodput:.1f} %", words))
    return found


def _terms(told: Rehearsal) -> list[dict[str, Any]]:
    whole = told.predicted_step_s
    return [
        {
            "name": name_of(one),
            "time": span(one.predicted_s),
            "share": f"{100 * one.predicted_s / whole:.1f} %",
            "width": round(100 * one.predicted_s / whole, 2),
            "kind": PLAIN.get(one.name, "message" if one.level else "update"),
            "collectives": ", ".join(one.collectives),
        }
        for one in told.terms
        if one.predicted_s > 5e-4 * whole
    ]


def _drawn(found: Rehearsed) -> dict[str, Any]:
    """Rows and events for the script, times in seconds."""
    drawn = gantt(found.step, found.played)
    return {
        "rows": [[row.coordinate, row.lane, row.rank] for row in drawn.rows],
        "names": list(drawn.names),
        "classes": list(CLASSES),
        "end": drawn.end_s,
        "events": [
            [row, _short(start), _short(end), name, kind, micro]
            for row, start, end, name, kind, micro in drawn.events
        ],
    }


def _short(seconds: float) -> float:
    return float(f"{seconds:.{DIGITS}g}")


def _loads(told: Rehearsal) -> list[dict[str, Any]]:
    """A row of cells for each level: how busy the link out of each unit was."""
    found = []
    for load in told.loads:
        units = list(load.units.items())[:MOST_UNITS]
        found.append(
            {
                "level": load.level,
                "network": load.network,
                "busiest": f"{100 * load.busiest:.0f} %",
                "mean": f"{100 * load.mean:.0f} %",
                "cells": [
                    {"unit": unit, "share": round(share, 4), "words": f"{100 * share:.0f} %"}
                    for unit, share in units
                ],
            }
        )
    return found


def _changes(told: Rehearsal) -> list[tuple[str, str, str]]:
    whole = told.predicted_step_s
    return [
        (
            one.words,
            span(one.predicted_step_s),
            f"{100 * (one.predicted_step_s / whole - 1):+.1f} %".replace("-", "−"),
        )
        for one in sorted(told.what_ifs, key=lambda one: one.predicted_step_s)
    ]


def _sliders(found: Rehearsed, request: RehearsalRequest) -> dict[str, Any]:
    """Seconds by placement and links, and what jitter adds to them, for the sliders."""
    told, load = found.rehearsal, request.workload
    spread = told.distribution
    more = spread.predicted_median_s - told.predicted_step_s if spread else 0.0
    return {
        "networks": list(NETWORKS),
        "jitters": list(JITTERS),
        "placements": [", ".join(order) or "one device" for order in placements(load)],
        "steps": grid(
            load,
            request.machine,
            request.wanted.jitter.background,
            found.congestion,
            told.predicted_step_s,
        ),
        "more": more,
        "own": told.predicted_step_s + more,
    }
