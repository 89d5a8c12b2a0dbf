"""A recipe, layout or batch that cannot work: one message, of four parts, and exit code 2."""

from pathlib import Path

import pytest

from armillary.spec import Layout, SpecError
from tests.fault.door import TROUBLE, train
from tests.parity.ranks import RanksFailed
from tests.parity.runs import Bench

BAD_INPUT = 2

GOOD = """
import torch
from torch import nn
settings = {"epochs": 1, "global_batch_size": 4}
def model(): return nn.Linear(2, 1)
def data(): return {"train": [torch.ones(2)] * 8, "validation": [torch.ones(2)] * 2}
def loss(model, batch): return model(batch).square().mean()
def optimizer(params): return torch.optim.SGD(params, lr=0.1)
"""


def case(folder: Path, before: str = "", after: str = "", extra: str = "") -> Path:
    """A recipe file: the good one with a part replaced, or added."""
    assert before in GOOD
    path = folder / "case.py"
    path.write_text(GOOD.replace(before, after) + extra)
    return path


def refusal(recipe: Path | str, layout: str = "", **assignments: str) -> SpecError:
    """The SpecError that training `recipe` raises in this process."""
    from armillary.train.launch import train as train_here
    from armillary.train.request import new_request

    folder = Path(recipe).parent
    with pytest.raises(SpecError) as caught:
        train_here(
            new_request(
                str(recipe),
                layout=Layout.parse(layout),
                trackers=(),
                quiet=True,
                runs=folder / "runs",
                assignments=assignments,
            )
        )
    error = caught.value
    assert error.where and error.found and error.rule and error.fix
    return error


def test_the_good_recipe_is_good(tmp_path: Path) -> None:
    from armillary.train.launch import train as train_here
    from armillary.train.request import new_request

    request = new_request(str(case(tmp_path)), runs=tmp_path, trackers=(), quiet=True)
    assert train_here(request).exit_code == 0


@pytest.mark.parametrize(
    ("before", "after", "where", "words"),
    [
        ("def model()", "def modell()", "case.py.model", "def model()"),
        ("def loss(", "def los(", "case.py.loss", "model, batch"),
        ("def model():", "def model()", None, "line 5"),
        ("import torch\n", "import torch, no_such_package\n", None, "no_such_package"),
        ("nn.Linear(2, 1)", "3", "recipe.model", "int"),
        ('"validation":', '"valid":', "case.py.data", "validation"),
        ("* 8,", "* 0,", "case.py.data['train']", "no samples"),
        (".mean()", "", "recipe.loss", "(4, 1)"),
        (".mean()", ".mean().item()", "recipe.loss", "float"),
        ('"epochs": 1', '"epoch": 1', "case.settings.epoch", "epochs"),
        ('"epochs": 1', '"epochs": 0', "settings.epochs", "at least 1"),
        (
            "[torch.ones(2)] * 8",
            "[torch.ones(2)] * 7 + [torch.ones(3)]",
            "recipe.collate",
            "pad_collate",
        ),
    ],
)
def test_a_recipe_that_cannot_work(
    tmp_path: Path, before: str, after: str, where: str | None, words: str
) -> None:
    error = refusal(case(tmp_path, before, after))
    assert where is None or error.where == where
    assert words in str(error)


def test_a_refusal_leaves_no_folder(tmp_path: Path) -> None:
    """Nothing was trained: there is nothing to be read."""
    refusal(case(tmp_path, "* 8,", "* 0,"))
    assert not [*(tmp_path / "runs").iterdir()]


def test_unequal_samples_are_told_alike_by_loading_processes(tmp_path: Path) -> None:
    ragged = case(tmp_path, "[torch.ones(2)] * 8", "[torch.ones(2)] * 7 + [torch.ones(3)]")
    error = refusal(ragged, num_workers="2")
    assert error.where == "recipe.collate" and "pad_collate" in error.fix


def test_a_missing_recipe(tmp_path: Path) -> None:
    assert "no file" in str(refusal(tmp_path / "nothing.py"))
    assert "weather" in str(refusal("wether"))


@pytest.mark.parametrize(
    ("layout", "where", "words"),
    [
        ("dta=2", "layout.dta", "data"),
        ("data=0", "layout.data", "at least 1"),
        ("data=two", "layout.data", "int"),
        ("data=2,data=4", "layout.data", "twice"),
        ("data", "layout", "name=value"),
        ("precision=float33", "layout.precision", "float32"),
        ("recompute=all", "layout.recompute", "full"),
    ],
)
def test_a_layout_that_cannot_be(tmp_path: Path, layout: str, where: str, words: str) -> None:
    error = refusal(case(tmp_path), layout)
    assert error.where == where and words in str(error)


def test_an_unknown_setting_or_option(tmp_path: Path) -> None:
    assert "epochs" in str(refusal(case(tmp_path), epoch="3"))


def test_batch_norm_over_micro_batches_is_refused_before_a_step_is_taken(tmp_path: Path) -> None:
    path = case(tmp_path, "nn.Linear(2, 1)", "nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))")
    layout, runs = "data=2,micro_batch_size=1", str(tmp_path / "runs")
    exit_code, said = train(str(path), "--layout", layout, "--runs", runs)
    assert exit_code == BAD_INPUT
    assert said.count("  rule  ") == 1 and "batch norm" in said and "Traceback" not in said


def test_shards_outside_replicas_are_refused(bench: Bench) -> None:
    with pytest.raises(RanksFailed, match="name data before sharded"):
        bench.train(TROUBLE, "sharded=2,data=2")


@pytest.mark.slow
def test_a_layout_for_another_world_is_told_once_under_torchrun(tmp_path: Path) -> None:
    launcher = (
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        "--local-addr",
        "localhost",
    )
    exit_code, said = train(
        TROUBLE, "--layout", "data=3", "--runs", str(tmp_path), launcher=launcher
    )
    assert exit_code != 0
    assert said.count("data=3 is for 3 ranks, the launcher started 2") == 1, said
    assert list(tmp_path.iterdir()) == []
