"""A checkpoint that was made to do harm: nothing in it is run, whichever file the harm is in."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from armillary.spec import SpecError
from armillary.step.world import World
from armillary.train.checkpoint import Checkpoints
from armillary.train.saved import checkpoint_path, holds, load

STATE = {"model": {"w": torch.arange(6.0)}, "rates": {"lr": 0.1, "betas": (0.9, 0.99), "on": None}}


class Harm:
    """A pickle of this makes a file when it is read by a full unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def keeper(folder: Path) -> Checkpoints:
    world = World(
        rank=0, num_ranks=1, device=torch.device("cpu"), mesh=None, batch_index=0, batch_count=1
    )
    return Checkpoints(folder, world, keep=2)


def saved(folder: Path, state: dict[str, Any]) -> Path:
    checkpoints = keeper(folder)
    checkpoints.save(1, state)
    checkpoints.finish()
    return checkpoint_path(folder, 1)


def empty() -> dict[str, Any]:
    return {"model": {"w": torch.zeros(6)}, "rates": {"lr": 0.0, "betas": (), "on": True}}


def test_plain_values_come_back_as_they_were(tmp_path: Path) -> None:
    path, state = saved(tmp_path, STATE), empty()
    load(path, state, serial=True)
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert state["rates"] == STATE["rates"] and holds(path, "model") and not holds(path, "average")


def test_harm_among_the_values_is_not_run(tmp_path: Path) -> None:
    """The bytes of one value are replaced by a pickle of as many bytes."""
    path, told = saved(tmp_path, STATE), tmp_path / "harmed"
    stored = json.loads((path / "shards.json").read_text())["stored"]
    file, start, length = next(place[3:] for place in stored if place[0] == "rates.lr")
    harm = pickle.dumps(Harm(told))
    content = bytearray((path / file).read_bytes())
    assert len(harm) <= length
    content[start : start + len(harm)] = harm
    (path / file).write_bytes(content)
    with pytest.raises(SpecError, match=r"rates\.lr"):
        load(path, empty(), serial=True)
    assert not told.exists()
    pickle.loads(harm)
    assert told.exists(), "a full unpickler would have run it"


@pytest.mark.parametrize("name", [".metadata", "shards.json"])
def test_harm_in_the_index_is_not_run(tmp_path: Path, name: str) -> None:
    path, told = saved(tmp_path, STATE), tmp_path / "harmed"
    (path / "shards.json").unlink()
    (path / name).write_bytes(pickle.dumps(Harm(told)))
    with pytest.raises(SpecError, match=r"shards\.json"):
        load(path, empty(), serial=True)
    assert not told.exists()


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, STATE)
    index = (path / "shards.json").read_text()
    (tmp_path / "__0_0.distcp").write_bytes((path / "__0_0.distcp").read_bytes())
    (path / "shards.json").write_text(index.replace("__0_0.distcp", "../__0_0.distcp"))
    with pytest.raises(SpecError, match="no file of the folder"):
        load(path, empty(), serial=True)


def test_what_could_not_be_read_back_is_not_saved(tmp_path: Path) -> None:
    checkpoints = keeper(tmp_path)
    checkpoints.save(1, {"rates": {"of": Fraction(1, 3)}})
    with pytest.raises(SpecError, match=r"rates\.of"):
        checkpoints.finish()
    assert not checkpoint_path(tmp_path, 1).exists()
