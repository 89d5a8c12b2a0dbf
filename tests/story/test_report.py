"""The report of a run: whatever the folder holds, a page that can be read offline."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from armillary.spec import SpecError
from armillary.train.report import save_figures, summary, write_report
from armillary.train.report.reading import read_run
from armillary.train.report.summary import direction

MANIFEST = {
    "schema": 1,
    "recipe": "weather",
    "created_utc": "2026-03-01T10:20:30Z",
    "monitor": "min:mae_c",
    "layout": {"degrees": {"data": 2}, "precision": "float32"},
    "settings": {"epochs": 10, "global_batch_size": 64, "max_steps": 0},
    "num_samples": {"train": 640, "test": 100},
    "versions": {"torch": "2.13.0"},
    "git": {},
}


def step_line(step: int, **changes: Any) -> dict[str, Any]:
    wave = 1 + 0.2 * np.sin(step * 12.9898)
    line = {
        "kind": "step",
        "step": step,
        "time_s": 0.01 * step,
        "epoch": (step - 1) // 10,
        "position": step * 64,
        "loss": float(wave * (0.3 + 2 / (1 + step / 20))),
        "learning_rate": 1e-3,
        "grad_norm": float(wave),
        "samples": 64,
        "step_s": 0.01,
        "phases_s": {"data": 0.001, "forward": 0.003, "backward": 0.005, "other": 0.001},
        "memory_bytes": 2**28,
    }
    return line | changes


def evaluation_line(step: int, split: str = "validation", mae_c: float = 2.0) -> dict[str, Any]:
    return {
        "kind": "evaluation",
        "step": step,
        "time_s": 0.01 * step,
        "epoch": step // 10,
        "split": split,
        "loss": mae_c / 2,
        "metrics": {"mae_c": mae_c},
        "evaluation_s": 0.1,
    }


def event(step: int, what: str, message: str = "", time_s: float | None = None) -> dict[str, Any]:
    return {
        "kind": "event",
        "step": step,
        "time_s": 0.01 * step if time_s is None else time_s,
        "what": what,
        "message": message,
    }


def rival(value: float, gap: tuple[float, float, float]) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - 0.2,
        "high": value + 0.2,
        "num_dropped": 0,
        "difference": gap[0],
        "difference_low": gap[1],
        "difference_high": gap[2],
        "excludes_zero": gap[1] > 0 or gap[2] < 0,
    }


EVALUATION = {
    "schema": 1,
    "split": "test",
    "num_samples": 100,
    "num_groups": 12,
    "num_resamples": 1000,
    "confidence": 0.95,
    "metrics": {
        "rmse_c": {"model": {"value": 3.0, "low": None, "high": None}, "rivals": {}},
        "mae_c": {
            "model": {"value": 2.4, "low": 2.2, "high": 2.6, "num_dropped": 0},
            "rivals": {
                "persistence": rival(2.9, (-0.5, -0.7, -0.3)),
                "cheat": rival(2.1, (0.3, 0.1, 0.5)),
                "twin": rival(2.39, (0.01, -0.1, 0.1)),
            },
        },
    },
}


def make_run(folder: Path, lines: list[Any], **documents: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(texts) + "\n" * bool(texts))
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def finished_run(folder: Path) -> Path:
    lines: list[Any] = []
    for step in range(1, 101):
        lines.append(step_line(step))
        if step % 10 == 0:
            lines.append(evaluation_line(step, mae_c=2.31 + abs(step - 80) / 100))
            lines.append(
                {
                    "kind": "checkpoint",
                    "step": step,
                    "time_s": 0.01 * step,
                    "save_s": 0.02,
                    "bytes": 4 * 2**20,
                }
            )
    lines += [event(80, "best", "validation mae_c 2.31"), evaluation_line(100, "test", 2.4)]
    run = make_run(folder, lines, manifest=MANIFEST, evaluation=EVALUATION)
    (run / "recipe.py").write_text("def model():\n    return '<b>not bold</b>'\n")
    save_figures(run, {"Forecast & observed": go.Figure(go.Scatter(y=np.arange(5.0)))})
    return run


class Page(HTMLParser):
    """What a browser would see: text, what it would load, the charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self._inside = ""
        self.scripts: list[tuple[dict[str, Any], str]] = []
        self.feed(text)
        self.words = re.sub(r"\s+", " ", " ".join(self.text))
        self.charts = json.loads(next(s for a, s in self.scripts if a.get("id") == "charts"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append(tag)
        self.loads += [v for name, v in attrs if name in ("src", "href", "srcset", "data") and v]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif self._inside == "style":
            assert "url(" not in data and "@import" not in data
        else:
            self.text.append(data)


def read(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_a_finished_run_says_its_outcome_in_a_sentence(tmp_path: Path) -> None:
    found = summary(finished_run(tmp_path / "run"))
    assert found["outcome"] == (
        "Best validation mae_c 2.31 at step 80; test mae_c 2.40 [2.20, 2.60], "
        "better than persistence by 0.50 [0.30, 0.70], worse than cheat by 0.30 [0.10, 0.50], "
        "not told apart from twin."
    )
    assert found["state"] == "finished"
    assert found["best_validation"] == {"metric": "mae_c", "value": 2.31, "step": 80}
    assert (found["num_steps"], found["planned_steps"], found["num_epochs"]) == (100, 100, 10)
    assert found["measured_samples_per_s"] == pytest.approx(6400)
    assert found["phase_shares"]["backward"] == pytest.approx(0.5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("metric", "better"),
    [("mae_c", -1), ("shot_auc", 1), ("tpr_at_fpr_10", 1), ("fpr_at_tpr_90", -1), ("warmth_c", 0)],
)
def test_a_metrics_name_tells_what_is_better(tmp_path: Path, metric: str, better: int) -> None:
    assert direction(metric, read_run(finished_run(tmp_path / "run"))) == better


def test_the_page_shows_all_parts_and_loads_nothing(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    page = read(run)
    assert page.loads == []
    assert "default-src 'none'" in (run / "report.html").read_text()
    for part in (
        "Against its rivals",
        "From the recipe",
        "How it learned",
        "Where the time went",
        "What happened",
        "What it was",
        "2.40 [2.20, 2.60]",
        "model better",
        "model worse",
        "not told apart",
        "Forecast & observed",
        "10 checkpoints, 4.00 MiB each",
        "100 test samples in 12 groups",
        "<b>not bold</b>",
        "2.13.0",
    ):
        assert part in page.words, part
    assert page.tags.count("script") == 3  # the charts, plotly once, the page's own
    assert sum("plotly.js v" in text for _, text in page.scripts) == 1
    assert len(page.charts) == 1 + 1 + 2 + 3 + 1  # loss, metric, rate and norm, speed, recipe


@pytest.mark.parametrize("documents", [{}, {"manifest": MANIFEST}, {"evaluation": EVALUATION}])
@pytest.mark.parametrize("lines", [[], [step_line(1)], [evaluation_line(10)], [event(1, "nan")]])
def test_any_part_of_a_folder_makes_a_page(
    tmp_path: Path, lines: list[Any], documents: dict[str, Any]
) -> None:
    page = read(make_run(tmp_path / "run", lines, **documents))
    assert page.loads == []
    json.dumps(summary(tmp_path / "run"), allow_nan=False)


def test_a_bare_folder_makes_a_page_and_no_folder_a_clear_error(tmp_path: Path) -> None:
    assert "No step has been recorded." in read(tmp_path).words
    assert summary(tmp_path)["state"] == "empty"
    with pytest.raises(SpecError, match="no folder"):
        write_report(tmp_path / "absent")


def test_a_run_under_way_and_a_killed_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [step_line(i) for i in range(1, 42)], manifest=MANIFEST)
    assert summary(run)["state"] == "running"
    assert summary(run)["outcome"].startswith("Running at step 41 of 100, training loss 0.")
    old_s = time.time() - 3600
    os.utime(run / "metrics.jsonl", (old_s, old_s))
    assert summary(run)["state"] == "unfinished"


def test_torn_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    torn = json.dumps(step_line(11))[:40]
    broken = [*(step_line(i) for i in range(1, 11)), "[1, 2]", '{"kind": "step"}', torn]
    run = make_run(tmp_path / "run", broken)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "st\xff\xfe')
    assert summary(run)["num_steps"] == 10
    assert "4 lines of metrics.jsonl could not be read" in read(run).words


def test_steps_that_a_resumed_run_did_again_count_once(tmp_path: Path) -> None:
    lines: list[Any] = [step_line(i, loss=9.0) for i in range(1, 21)]
    lines.insert(10, evaluation_line(10, mae_c=5.0))
    lines.append(evaluation_line(20, mae_c=0.1))
    lines += [event(15, "stopped", time_s=0.2), event(12, "resumed", time_s=0.0)]
    lines += [step_line(i, loss=1.0, time_s=0.01 * (i - 12)) for i in range(13, 31)]
    found = summary(make_run(tmp_path / "run", lines, manifest=MANIFEST))
    assert found["num_steps"] == 30 and found["train_loss"] == 1.0
    assert found["best_validation"] == {"metric": "mae_c", "value": 5.0, "step": 10}
    assert found["duration_s"] == pytest.approx(0.2 + 0.18)
    assert found["state"] == "running"
    page = read(tmp_path / "run")
    faint = page.charts[0]["data"][0]
    assert faint["x"] == list(range(1, 31)) and faint["y"] == [9.0] * 12 + [1.0] * 18


@pytest.mark.parametrize(
    ("what", "state"),
    [("stopped", "stopped"), ("nan", "stopped: not finite"), ("early stop", "finished")],
)
def test_events_tell_the_state(tmp_path: Path, what: str, state: str) -> None:
    run = make_run(tmp_path / "run", [step_line(1), event(1, what, "why <i>so</i>")])
    assert summary(run)["state"] == state
    assert "why <i>so</i>" in read(run).words


@pytest.mark.parametrize(
    ("before", "message", "state"),
    [
        ("best", "finished", "finished"),
        ("best", "stopped early", "finished"),
        ("best", "interrupted; saved, go on with --resume", "stopped"),
        ("nan", "loss nan at step 3", "stopped: not finite"),
    ],
)
def test_how_a_run_ended_tells_its_state(
    tmp_path: Path, before: str, message: str, state: str
) -> None:
    lines = [step_line(1), event(1, before), event(1, "ended", message)]
    assert summary(make_run(tmp_path / "run", lines))["state"] == state


def test_numbers_that_are_not_finite_become_gaps(tmp_path: Path) -> None:
    lines = [
        step_line(i, loss=float("nan") if i > 90 else 1.0, grad_norm=None) for i in range(1, 101)
    ]
    lines[5]["step_s"] = 0.0
    run = make_run(tmp_path / "run", lines)
    text = write_report(run).read_text()
    assert "NaN" not in Page(text).scripts[0][1] and "Infinity" not in Page(text).scripts[0][1]
    assert summary(run)["train_loss"] == 1.0


def test_text_of_the_run_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    lines = [step_line(1, phases_s={evil: 0.01}), event(1, evil, evil)]
    lines.append(evaluation_line(1) | {"metrics": {evil: 1.0}})
    entry = EVALUATION["metrics"]["mae_c"]  # type: ignore[index]
    evaluation = EVALUATION | {
        "metrics": {evil: {"model": entry["model"], "rivals": {evil: rival(1.0, (1, 1, 1))}}}
    }
    run = make_run(
        tmp_path / "run",
        lines,
        evaluation=evaluation,
        manifest={"recipe": evil, "options": {evil: evil}, "monitor": f"min:{evil}"},
    )
    (run / "recipe.py").write_text(evil)
    save_figures(run, {evil: go.Figure(go.Scatter(y=[1, 2], name="a"))})
    page = read(run)
    assert page.tags.count("script") == 3 and "img" not in page.tags
    assert page.words.count("alert(1)") > 5
    assert all("<" not in trace.get("name", "") for c in page.charts for trace in c["data"])


def test_a_recipe_may_have_any_name(tmp_path: Path) -> None:
    """A file's name has no slash, and needs none to do harm in a page that obeys it."""
    evil = "<img src=x onerror=alert(1)>"
    run = make_run(
        tmp_path / f"{evil}-20260101-000000",
        [step_line(1)],
        manifest=MANIFEST | {"recipe": f"{evil}.py", "hardware": {"invocation": evil}},
    )
    page = read(run)
    assert "img" not in page.tags and page.words.count(evil) >= 3


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    template = json.dumps(step_line(7)).replace('"step": 7', '"step": %d', 1)
    with (run / "metrics.jsonl").open("w") as file:
        file.writelines(template % i + "\n" for i in range(1, 100_001))
        for i in range(0, 100_000, 50):
            file.write(json.dumps(evaluation_line(i + 1) | {"step": i}) + "\n")
            file.write(json.dumps(event(i, "best", "better again")) + "\n")
    text = write_report(run).read_text()
    assert len(text) - len(get_plotlyjs()) < 2 * 2**20
    assert max(len(trace["x"]) for c in Page(text).charts for trace in c["data"]) <= 1600


def test_a_spike_survives_thinning(tmp_path: Path) -> None:
    lines = [step_line(i, loss=99.0 if i == 4321 else 1.0) for i in range(1, 8001)]
    raw = read(make_run(tmp_path / "run", lines)).charts[0]["data"][0]
    assert max(raw["y"]) == 99.0 and raw["x"][raw["y"].index(99.0)] == 4321


def test_a_figure_that_cannot_be_shown_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [step_line(1)])
    folder = run / "figures"
    folder.mkdir()
    (folder / "00-bad.json").write_text("{")
    (folder / "01-list.json").write_text("[]")
    (folder / "02-plain-plotly.json").write_text(go.Figure(go.Bar(y=[1])).to_json())
    (folder / "03-huge.json").write_text('{"data": [], "x": "' + "a" * 7_000_000 + '"}')
    words = read(run).words
    for said in (
        "00-bad.json is left out",
        "01-list.json is left out",
        "plain plotly",
        "03-huge.json is left out: the figures together are too large",
    ):
        assert said in words
    with pytest.raises(TypeError, match="not a plotly figure"):
        save_figures(run, {"a": 3})


def test_reporting_does_not_import_torch(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from armillary.train.report import write_report;"
        f"write_report(Path({str(run)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
