"""The word `plan` as a person types it: for a family, a recipe and a stored graph."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from armillary.models.families import parse
from armillary.spec import Plan

FAMILY = "gpt:layers=4,hidden=256,heads=4,seq=128,vocab=512"
CASE = '''
"""A small transformer on random tokens."""
import torch
from torch import nn

settings = {"epochs": 1, "global_batch_size": 16}


class Model(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.embed = nn.Embedding(64, hidden_size)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden_size, 2 * hidden_size),
                nn.GELU(),
                nn.Linear(2 * hidden_size, hidden_size),
            )
            for _ in range(4)
        )
        self.head = nn.Linear(hidden_size, 64)

    def forward(self, tokens):
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden)


def model(hidden_size: int = 32):
    return Model(hidden_size)


def data(num_samples: int = 64):
    tokens = torch.randint(0, 64, (num_samples, 9), generator=torch.Generator().manual_seed(0))
    return {"train": list(tokens), "validation": list(tokens[:16])}


def loss(model, batch):
    scores = model(batch[:, :-1])
    return nn.functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())


def optimizer(params):
    return torch.optim.AdamW(params, lr=1e-3)
'''


def armillary(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command with `words`, run in `folder`, which also holds what it keeps for later."""
    return subprocess.run(
        [sys.executable, "-m", "armillary.cli", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "120"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan")
    (path / "my_case.py").write_text(CASE)
    return path


def test_a_family_on_a_machine_says_all_that_it_promises(folder: Path) -> None:
    done = armillary(
        "plan", FAMILY, "--machine", "polaris", "--devices", 8, "--batch", 64, "--steps", 1000,
        "--why", "tensor=4", "--why", "tensor=3", "--out", "plan.json", "--html", "plan.html",
        folder=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in (
        "a step of 64 samples",
        "where the time goes",
        "where the memory goes",
        "hardware",
        "ranked by time",
        "what none beats",
        "sweet spot",
        "on more devices",
        "a batch that grows with the devices",
        "why not tensor=4?",
        "why not tensor=3?",
        "does not divide num_heads 4",
        "layouts priced",
        "not known of polaris",
        "goes into steps that count",
        "the training",
        "wrote plan.json",
    ):
        assert part in done.stdout, part
    plan = Plan.read(folder / "plan.json")
    assert plan.num_devices == plan.layout.num_ranks <= 8
    assert plan.why_not[1].candidate is None and plan.why_not[0].candidate is not None
    assert all(term.source and term.level for term in (*plan.terms, *plan.memory))
    page = (folder / "plan.html").read_text()
    assert "<script" not in page and "http-equiv" in page
    assert page.count("<svg") >= 4 and str(plan.layout) in page


def test_a_program_reads_the_same_plan(folder: Path) -> None:
    words = ("plan", FAMILY, "--machine", "dgx_h100", "--devices", 8, "--batch", 64)
    told = json.loads(armillary(*words, "--json", folder=folder).stdout)
    armillary(*words, "-q", "--out", "same.json", folder=folder)
    same = json.loads((folder / "same.json").read_text())
    for one in (told, same):
        one["search"].pop("search_s")
    assert told == same
    assert Plan.from_dict(told).best.predicted_usd > 0


def test_a_stored_graph_and_its_family_give_one_plan(folder: Path) -> None:
    parse(FAMILY).write(folder / "graph.json")
    words = ("--machine", "polaris", "--devices", 4, "--batch", 16, "--json")
    of_family, of_file = (
        json.loads(armillary("plan", target, *words, folder=folder).stdout)
        for target in (FAMILY, "graph.json")
    )
    assert of_family["layout"] == of_file["layout"]
    assert of_family["predicted_step_s"] == of_file["predicted_step_s"]
    assert of_family["graph_sha256"] == of_file["graph_sha256"]


@pytest.mark.slow
def test_a_recipe_is_traced_once_and_its_plan_trains_and_is_verified(folder: Path) -> None:
    first = armillary("plan", "my_case.py", "--top", 2, "--out", "mine.json", folder=folder)
    assert first.returncode == 0, first.stderr
    kept = list((folder / "cache").rglob("*.json"))
    assert len(kept) == 1
    again = armillary("plan", "my_case.py", "-q", "--out", "again.json", folder=folder)
    assert again.returncode == 0 and list((folder / "cache").rglob("*.json")) == kept
    plan = Plan.read(folder / "mine.json")
    assert plan.layout == Plan.read(folder / "again.json").layout
    assert plan.global_batch_size == 16 and plan.machine == "laptop_2core"

    done = armillary("train", "my_case.py", "--plan", "mine.json", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    run = folder / json.loads(done.stdout)["run"]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["layout"]["degrees"] == dict(plan.layout.degrees)
    told = json.loads(armillary("report", run, "--json", folder=folder).stdout)["plan"]
    assert told["predicted_step_s"] == plan.predicted_step_s
    assert told["measured_step_s"] > 0
    assert "Beside the plan" in (run / "report.html").read_text()

    proven = armillary("verify", "my_case.py", "--plan", "mine.json", "--steps", 1, folder=folder)
    assert proven.returncode == 0, proven.stdout + proven.stderr


def test_options_of_a_recipe_change_its_graph(folder: Path) -> None:
    words = ("plan", "my_case.py", "--devices", 1, "--json")
    small, large = (
        json.loads(armillary(*words, *more, folder=folder).stdout)["num_parameters"]
        for more in ((), ("--set", "hidden_size=64"))
    )
    assert large > 2 * small


def test_limits_choose_another_layout_and_impossible_ones_say_what_would_do(folder: Path) -> None:
    words = ("plan", FAMILY, "--machine", "dgx_h100", "--at-most", 64, "--batch", 256)
    fastest = json.loads(armillary(*words, "--json", folder=folder).stdout)
    steps = 10**6
    late = 4 * fastest["predicted_step_s"] * steps / 3600
    cheapest = json.loads(
        armillary(
            *words, "--deadline", f"{late}h", "--steps", steps, "--json", folder=folder
        ).stdout
    )
    assert cheapest["objective"] == "cost"
    assert cheapest["num_devices"] < fastest["num_devices"]
    assert cheapest["best"]["predicted_usd"] < fastest["best"]["predicted_usd"]
    refused = armillary(*words, "--deadline", "1s", "--steps", steps, "--json", folder=folder)
    assert refused.returncode == 2
    assert "take at least" in json.loads(refused.stdout)["error"]["found"]


def test_fixed_words_are_kept(folder: Path) -> None:
    done = armillary(
        "plan", FAMILY, "--machine", "polaris", "--devices", 8, "--batch", 64, "--json",
        "--fix", "tensor=2,recompute=full,micro_batch_size=4,precision=float32",
        folder=folder,
    )  # fmt: skip
    layout = json.loads(done.stdout)["layout"]
    assert layout["degrees"]["tensor"] == 2
    assert (layout["recompute"], layout["micro_batch_size"]) == ("full", 4)
    assert layout["precision"] == "float32"
