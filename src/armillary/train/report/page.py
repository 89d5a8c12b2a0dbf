"""report.html: one self-contained file about a run."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from armillary.spec import page, write_atomically
from armillary.train.report import words
from armillary.train.report.charts import (
    Chart,
    loss_chart,
    speed_charts,
    training_charts,
    wheel_of,
)
from armillary.train.report.figures import read_figures
from armillary.train.report.planned import planned_rows
from armillary.train.report.reading import Record, number, read_run, sources, table
from armillary.train.report.rivals import comparison_tables
from armillary.train.report.summary import jsonable, summarise

OPEN_EVENTS = 12  # shown at once; the others unfold
MOST_EVENTS = 500
MOST_SOURCE = 200_000  # characters of a recipe file
SUBPLOT_TITLE_SIZE = 16  # what plotly.subplots writes out; the page has a calmer one
RUN_ROWS = ("recipe", "created_utc", "monitor", "num_parameters", "recipe_sha256")


def write_report(run_folder: Path) -> Path:
    """The path of report.html, written into the run folder from what the folder holds now.

    The file loads nothing from elsewhere, and a security policy inside it says so to the browser.

    Raises: `SpecError` if there is no such folder.
    """
    record = read_run(Path(run_folder))
    charts: list[Chart] = []
    loss = loss_chart(record)
    learning = ([loss] if loss else []) + training_charts(record)
    speed = speed_charts(record)
    found, left_out = read_figures(record.folder)
    figures = [_recipe_chart(figure) for figure in found]
    for index, chart in enumerate([*learning, *speed, *figures]):
        chart["id"] = f"chart-{index}"
        charts.append({"id": chart["id"], "data": chart["data"], "layout": chart["layout"]})
    short = summarise(record)
    text = page.render(
        "armillary.train.report",
        short=short,
        head=_head(short),
        tiles=_tiles(short, record),
        learning=learning,
        speed=speed,
        plan=planned_rows(record),
        shares=_shares(short),
        comparison=table(record.comparison),
        metrics=comparison_tables(record),
        figures=figures,
        left_out=left_out,
        events=_events(record),
        open_events=OPEN_EVENTS,
        checkpoints=_checkpoints(record),
        tables=_tables(record),
        sources=_sources(record),
        charts=jsonable(charts),
        plotly=get_plotlyjs(),
    )
    path = record.folder / "report.html"
    write_atomically(path, text)
    return path


def _head(short: dict[str, Any]) -> dict[str, str]:
    recipe = Path(str(short["recipe"] or short["run"])).name.removesuffix(".py")
    created = str(short["created_utc"] or "")[:16].replace("T", " ")
    when = [f"{created} UTC"] if created else []
    if short["duration_s"]:
        when.append(words.duration(short["duration_s"]))
    tone = {"finished": "good", "running": "live", "stopped: not finite": "bad"}
    return {"recipe": recipe, "when": " · ".join(when), "tone": tone.get(short["state"], "")}


def _tiles(short: dict[str, Any], record: Record) -> list[tuple[str, str, str]]:
    """Label, value, and a word about it."""
    tiles = []
    best = short["best_validation"]
    if best:
        at = f"best, at step {number(best['step']):,.0f}"
        tiles.append((f"validation {best['metric']}", words.short(best["value"]), at))
    if short["train_loss"] is not None:
        tiles.append(("training loss", words.short(short["train_loss"]), "mean of the last steps"))
    if short["num_steps"]:
        planned = short["planned_steps"]
        more = planned and planned > short["num_steps"]
        epochs = f"{short['num_epochs']} epochs" if short["num_epochs"] else ""
        tiles.append(("steps", f"{short['num_steps']:,}", f"of {planned:,}" if more else epochs))
    if short["measured_samples_per_s"]:
        step_s = words.duration(short["measured_step_s"])
        if short["measured_step_s"] < 1:
            step_s = f"{words.short(short['measured_step_s'] * 1e3)} ms"
        speed = words.short(short["measured_samples_per_s"])
        tiles.append(("samples per second", speed, f"{step_s} a step, median"))
    ranks = math.prod(
        int(degree)
        for degree in table(table(record.manifest.get("layout")).get("degrees")).values()
        if number(degree) >= 1
    )
    if record.manifest.get("layout"):
        degrees = table(table(record.manifest["layout"]).get("degrees"))
        spelled = ", ".join(f"{axis} {degree}" for axis, degree in degrees.items())
        tiles.append(("ranks", f"{ranks:,}", spelled or "no axis"))
    if short["memory_bytes"]:
        tiles.append(("memory", words.size(short["memory_bytes"]), "most in a step"))
    return tiles


def _shares(short: dict[str, Any]) -> list[dict[str, Any]]:
    """Phases of a step for the bar: name, width in percent of the bar, share in words."""
    shares = short["phase_shares"]
    total = sum(shares.values()) or 1.0
    return [
        {
            "name": name,
            "width": round(100 * share / total, 2),
            "wheel": wheel_of(name, index),
            "text": f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %",
        }
        for index, (name, share) in enumerate(shares.items())
    ]


def _recipe_chart(figure: dict[str, Any]) -> Chart:
    layout = {k: v for k, v in figure["layout"].items() if k not in ("template", "title", "width")}
    height = number(layout.pop("height", None))
    for note in layout.get("annotations") or []:
        if table(table(note).get("font")).get("size") == SUBPLOT_TITLE_SIZE:
            note["font"].pop("size")
    return {
        "title": figure["title"],
        "note": "",
        "wide": True,
        "data": figure["data"],
        "height": int(min(1600, max(160, height))) if math.isfinite(height) else 380,
        "layout": layout,
    }


def _events(record: Record) -> list[dict[str, str]]:
    events = record.events
    if len(events) > MOST_EVENTS:
        events = [event for event in events if event.get("what") != "best"][-MOST_EVENTS:]
    tones = dict.fromkeys(("nan", "fallback", "rolled-back"), "bad") | {"best": "good"}
    tones |= dict.fromkeys(("stopped", "resumed", "restarted", "skipped", "straggler"), "warn")
    return [
        {
            "time": words.duration(event.get("time_s")),
            "what": str(event.get("what", "event")),
            "step": f"{number(event.get('step')):,.0f}" if "step" in event else "",
            "message": str(event.get("message") or ""),
            "tone": tones.get(str(event.get("what")), ""),
        }
        for event in events
    ]


def _checkpoints(record: Record) -> str:
    saves = record.checkpoints
    if not saves:
        return ""
    held = [t for line in saves if math.isfinite(t := number(line.get("save_s")))]
    sizes = [b for line in saves if math.isfinite(b := number(line.get("bytes")))]
    parts = [f"{len(saves):,} checkpoint{'s' if len(saves) > 1 else ''}"]
    if sizes:
        parts.append(f"{words.size(sizes[-1])} each")
    if held:
        median_s = statistics.median(held)
        spelled = words.duration(median_s) if median_s >= 1 else f"{words.short(median_s * 1e3)} ms"
        parts.append(f"each held up training for {spelled} (median)")
    return ", ".join(parts) + "."


def _tables(record: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    """The manifest as titled tables: one a section, and one of what is left."""
    manifest = record.manifest
    loose = {k: v for k, v in manifest.items() if not isinstance(v, dict)}
    names = [name for name in RUN_ROWS if name in loose]
    names += [name for name in loose if name not in RUN_ROWS]
    tables = [("run", [row for name in names for row in words.flat(loose[name], name)])]
    for name, section in manifest.items():
        if isinstance(section, dict) and section:
            tables.append((name.replace("_", " "), words.flat(section)))
    told = [(title, [row for row in rows if row[0] != "schema"]) for title, rows in tables]
    return [(title, rows) for title, rows in told if rows]


def _sources(record: Record) -> dict[str, str]:
    shown = {}
    for name, text in sources(record.folder).items():
        rest = len(text) - MOST_SOURCE
        shown[name] = text if rest <= 0 else text[:MOST_SOURCE] + f"\n... {rest:,} characters more"
    return shown
