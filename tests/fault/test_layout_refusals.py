"""What an axis cannot serve is told before any rank starts, whichever axis it is."""

from pathlib import Path
from typing import Any

import pytest

from armillary.spec import Layout, SpecError
from armillary.train import launch
from armillary.train.request import new_request

OWN_MODEL = """
import torch
from torch import nn
from armillary import Experts

class Shared(Experts):
    def __init__(self):
        super().__init__(4, 6, 6)
        self.scale = nn.Parameter(torch.ones(6))

class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Shared()

    def forward(self, x):
        chosen = torch.arange(len(x), device=x.device)[:, None] % 4
        return self.experts(x, torch.ones_like(x[:, :1]), chosen) * self.experts.scale

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x):
        return self.lstm(x[:, None])[0]

def model(kind: str = "normed"):
    made = {"normed": nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), "routed": Routed(),
            "recurrent": Recurrent()}
    return made[kind]

def data():
    samples = [torch.ones(6) for _ in range(8)]
    return {"train": samples, "validation": samples}

def loss(model, batch):
    return model(batch).square().mean()

def optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.1)
"""


class RankStarted(Exception):
    """Ranks would have been started."""


def refuse_to_start(request: Any) -> Any:
    raise RankStarted


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN_MODEL)
    return path


def train(recipe: str, words: str, runs: Path, **options: str) -> None:
    launch.train(
        new_request(recipe, layout=Layout.parse(words), runs=runs, assignments=options, quiet=True)
    )


CASES = [
    ("gpt", "tensor=3", "layout.tensor", "num_key_heads 2", {}),
    ("gpt", "sequence=3", "layout.sequence", "128 positions", {}),
    ("gpt", "expert=2", "layout.expert", "no routed experts", {}),
    ("gpt", "pipeline=8", "layout.pipeline", "4 blocks", {}),
    ("gpt", "pipeline=2,compile=true", "layout.compile", "pipeline", {}),
    ("gpt", "sharded=2,data=2", "layout.sharded", "named before data", {}),
    ("gpt", "data=2,pipeline=2,pipeline.schedule=zbv", "pipeline.schedule", "tie", {"tied": "yes"}),
    ("moe", "expert=3", "layout.expert", "8 experts", {}),
    ("moe", "tensor=2,sequence=2", "layout.sequence", "named after tensor", {}),
    ("own", "data=2,micro_batch_size=1", "layout.data", "batch norm", {}),
    ("own", "sharded=2,micro_batch_size=1", "layout.sharded", "batch norm", {}),
    ("own", "expert=2", "layout.expert", "scale of shape (6,) for 4 experts", {"kind": "routed"}),
    ("own", "sequence=2", "layout.sequence", "recurrent", {"kind": "recurrent"}),
    ("own", "tensor=2", "layout.tensor", "nothing can be split", {"kind": "recurrent"}),
]


@pytest.mark.parametrize(("recipe", "words", "where", "said", "options"), CASES)
def test_no_rank_is_started_for_what_an_axis_refuses(
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    words: str,
    where: str,
    said: str,
    options: dict[str, str],
) -> None:
    monkeypatch.setattr(launch, "train_on_own_ranks", refuse_to_start)
    runs = tmp_path / "runs"
    with pytest.raises(SpecError, match="rule") as caught:
        train(str(own) if recipe == "own" else recipe, words, runs, **options)
    error = caught.value
    assert where in error.where and said in str(error), str(error)
    assert error.rule and error.fix
    assert not runs.exists(), "a run that cannot be has no folder"


@pytest.mark.parametrize("words", ["data=2", "sharded=2", "tensor=2,sequence=2", "pipeline=2"])
def test_what_is_admitted_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr(launch, "train_on_own_ranks", refuse_to_start)
    with pytest.raises(RankStarted):
        train("gpt", words, tmp_path)


def test_a_mistake_in_the_model_is_left_to_the_ranks(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They show it once, with its traceback."""
    own.write_text(OWN_MODEL.replace("self.lstm(x[:, None])[0]", "self.lost(x)"))
    monkeypatch.setattr(launch, "train_on_own_ranks", refuse_to_start)
    with pytest.raises(RankStarted):
        train(str(own), "sequence=2", tmp_path, kind="recurrent")
