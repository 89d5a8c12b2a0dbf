"""The word `rehearse` as a person types it: plan, play, look, and hand on."""

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from armillary.rehearse.building import build
from armillary.rehearse.goal import goal
from armillary.spec import Plan
from armillary.spec.rehearsal import Rehearsal
from tests.law.test_rehearsal import all_messages, links, workload

FAMILY = "gpt:layers=8,hidden=1024,heads=16,seq=512,vocab=512"


def armillary(*words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "armillary.cli", *words], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    fix = "pipeline=4,tensor=2,data=4,micro_batch_size=1"
    armillary(
        *("plan", FAMILY, "--machine", "polaris", "--devices", "32", "--batch", "64"),
        *("--fix", fix, "--out", str(path), "-q"),
    )
    return path


def test_a_plan_is_rehearsed_and_says_what_holds_it(plan: Path) -> None:
    told = armillary("rehearse", str(plan), "--why", "--days", "3")
    for words in ("32 devices of polaris", "the plan", "what holds the step", "critical path"):
        assert words in told
    assert "twice as fast" in told


def test_it_needs_no_torch(plan: Path) -> None:
    code = (
        "import sys\nfrom armillary.cli import app\n"
        f"app(['rehearse', {str(plan)!r}, '-q'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_json_is_a_rehearsal_and_its_seed_gives_it_again(plan: Path) -> None:
    words = ("rehearse", str(plan), "--json", "--samples", "16", "--seed", "5", "--days", "2")
    one, same = (Rehearsal.from_json(armillary(*words)) for _ in range(2))
    assert one.distribution == same.distribution and one.endurance == same.endurance
    assert one.predicted_step_s == pytest.approx(Plan.read(plan).predicted_step_s, rel=0.3)
    assert sum(term.predicted_s for term in one.terms) == pytest.approx(one.predicted_step_s)
    assert one.distribution is not None
    assert one.distribution.predicted_p99_s >= one.distribution.predicted_median_s
    assert {change.network for change in one.what_ifs} >= {0.5, 2.0}


def test_slow_parts_and_other_jobs_make_it_slower(plan: Path) -> None:
    def median(*words: str) -> float:
        told = armillary("rehearse", str(plan), "--json", "--no-flows", "--jitter", "none", *words)
        spread = Rehearsal.from_json(told).distribution
        assert spread is not None
        return spread.predicted_median_s

    whole = median()
    twice, fourfold = (median("--slow-device", f"5:{factor}") for factor in (2, 4))
    assert twice > 1.02 * whole and fourfold > 1.2 * whole
    assert median("--slow-link", "3:8") > whole
    assert median("--background", "0.5") > whole


class Reader(HTMLParser):
    """What a page would load from elsewhere, and the JSON that its script reads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.data: dict[str, str] = {}
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [v for k, v in given.items() if k in ("src", "href") and v]
        if given.get("type") == "application/json":
            self.inside = str(given["id"])

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.data[self.inside] = self.data.get(self.inside, "") + data


def test_the_page_holds_all_it_needs(plan: Path, tmp_path: Path) -> None:
    values = json.loads(plan.read_text())
    values["model"] = "gpt:<script>alert(1)</script>"
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps(values))
    page = tmp_path / "rehearsal.html"
    armillary("rehearse", str(odd), "--html", str(page), "--samples", "8", "-q")
    text = page.read_text()
    assert "<script>alert" not in text
    reader = Reader()
    reader.feed(text)
    assert not reader.loaded
    drawn = json.loads(reader.data["events"])
    assert {row[0] for row in drawn["rows"]} == {0, 1, 2, 3}
    assert all(0 <= event[1] <= event[2] <= drawn["end"] * (1 + 1e-6) for event in drawn["events"])
    choices = json.loads(reader.data["choices"])
    assert len(choices["steps"]) == len(choices["placements"]) > 1
    assert all(row == sorted(row, reverse=True) for row in choices["steps"])


ACTS = """<script>{
window.addEventListener("error", (event) => { document.body.dataset.failed = event.message; });
const by = (name) => document.getElementById(name);
by("nearer").click();
const box = by("gantt").getBoundingClientRect();
const at = { clientX: box.left + 400, clientY: box.top + 8, pointerId: 1 };
by("gantt").dispatchEvent(new PointerEvent("pointermove", at));
const before = by("then").textContent;
by("network").value = 3;
by("network").dispatchEvent(new Event("input"));
document.body.dataset.out = JSON.stringify([by("said").textContent, before,
  by("then").textContent, by("change").textContent]);
}</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium here")
def test_the_page_answers_in_a_browser(plan: Path, tmp_path: Path) -> None:
    page = tmp_path / "rehearsal.html"
    armillary("rehearse", str(plan), "--html", str(page), "--samples", "8", "-q")
    page.write_text(page.read_text().replace("</body>", ACTS))
    words = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri())
    done = subprocess.run(["chromium", *words], capture_output=True, text=True, timeout=120)
    assert "data-failed" not in done.stdout
    found = re.search(r'data-out="([^"]*)"', done.stdout)
    assert found is not None
    said, before, after, change = json.loads(unescape(found[1]))
    assert said.startswith("stage 0, rank 0, compute: ")
    assert before != after and change.endswith("less than rehearsed")


COUNTING = """import torch.distributed as dist
from torch import nn
from armillary.recipes import gpt
from armillary.recipes.gpt import data, loss, metrics, optimizer

class Counting(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *inputs):
        x = self.block(*inputs)
        if dist.is_initialized():
            dist.all_reduce(x.detach().float().square().mean((0, 1)))
        return x

def model():
    whole = gpt.model()
    whole.blocks = nn.ModuleList(Counting(block) for block in whole.blocks)
    return whole
"""


@pytest.mark.slow
def test_a_ranks_program_is_held_against_the_plan(tmp_path: Path) -> None:
    """What is otherwise comes as a table, with the module that causes it: here blocks that sum over
    all ranks by themselves, which no axis knows of.
    """
    recipe, plan, page = (tmp_path / name for name in ("counting.py", "plan.json", "page.html"))
    recipe.write_text(COUNTING)
    fix = "pipeline=2,tensor=2,micro_batch_size=2,precision=bfloat16"
    armillary(
        *("plan", str(recipe), "--machine", "polaris", "--devices", "4", "--batch", "8"),
        *("--fix", fix, "--out", str(plan), "-q"),
    )
    words = ("rehearse", str(plan), "--rank", "1", "--samples", "0", "--no-flows")
    assert f"--recipe {recipe.name}" in armillary(*words, code=2)
    words += ("--recipe", str(recipe))
    told = Rehearsal.from_json(armillary(*words, "--json"))
    assert told.record is not None and told.record.rank == 1
    assert told.compared_ranks[0] == 0 and len(told.compared_ranks) > 1
    kind = "all_reduce along pipeline and tensor"
    assert {(one.kind, one.planned) for one in told.differences} == {(kind, 0.0)}
    assert {one.module for one in told.differences} == {f"blocks.{i}" for i in range(4)}
    said = armillary(*words, "--html", str(page))
    for shown in (said, page.read_text()):
        assert "all_reduce along" in shown and "blocks.0" in shown and "untold" in shown


def test_the_trace_is_one_that_viewers_read(plan: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    armillary("rehearse", str(plan), "--trace", str(trace), "--samples", "0", "-q")
    events = json.loads(trace.read_text())["traceEvents"]
    timed = [event for event in events if event["ph"] == "X"]
    assert {"ts", "dur", "pid", "tid", "name"} <= set(timed[0])
    lines: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in timed:
        lines.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["dur"]))
    for line in lines.values():
        line.sort()
        pairs = pairwise(line)
        assert all(one[0] + one[1] <= other[0] + 1e-3 for one, other in pairs)


def replayed_s(text: str) -> float:
    """Seconds of a GOAL program whose messages take no time."""
    span: dict[str, int] = {}
    needs: dict[str, set[str]] = {}
    sends, receives = {}, {}
    for rank, body in re.findall(r"rank (\d+) \{\n(.*?)\n\}", text, re.S):
        for line in body.splitlines():
            own, _, rest = line.partition(" ")
            own = f"{rank} {own.rstrip(':')}"
            if found := re.fullmatch(r"calc (\d+)", rest):
                span[own] = int(found[1])
            elif found := re.fullmatch(r"send (\d+)b to (\d+) tag (\d+)", rest):
                sends[rank, found[2], found[3], found[1]] = own
            elif found := re.fullmatch(r"recv (\d+)b from (\d+) tag (\d+)", rest):
                receives[found[2], rank, found[3], found[1]] = own
            else:
                needs.setdefault(own, set()).add(f"{rank} {rest.removeprefix('requires ')}")
    assert sends.keys() == receives.keys()
    for key, own in receives.items():
        needs.setdefault(own, set()).add(sends[key])
    ends: dict[str, int] = {}
    left = {*span, *sends.values(), *receives.values()}
    assert {one for needed in needs.values() for one in needed} <= left
    while left:
        free = [one for one in left if not needs.get(one, set()) & left]
        assert free, "it waits for itself"
        for one in free:
            ends[one] = span.get(one, 0) + max((ends[n] for n in needs.get(one, ())), default=0)
        left -= set(free)
    return max(ends.values()) / 1e9


def test_the_goal_file_replays_to_the_same_seconds(tmp_path: Path) -> None:
    load = workload("interleaved_1f1b", messages=all_messages())
    step = build(load, links(load))
    played = step.play()
    text = goal(step, played)
    for index, label in enumerate(step.labels):
        span_s = played.end_s[index] - played.start_s[index]
        is_hop = label.lane in ("send", "send back")
        step.tasks.fixed_s[index] = 0.0 if is_hop else round(span_s * 1e9) / 1e9
        step.tasks.wire_s[index] = 0.0
    assert replayed_s(text) == pytest.approx(step.play().step_s, abs=1e-8)


def test_the_goal_file_of_a_plan_is_a_program_that_ends(plan: Path, tmp_path: Path) -> None:
    path = tmp_path / "step.goal"
    told = armillary("rehearse", str(plan), "--goal", str(path), "--samples", "0", "--no-flows")
    assert f"wrote {path}" in told.replace("\n", "")
    assert replayed_s(path.read_text()) > 0
