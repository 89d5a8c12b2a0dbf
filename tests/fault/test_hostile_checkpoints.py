"""A checkpoint that was made to do harm: nothing in it is run, whichever file the harm is in."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from armillary.spec import SpecError
from armillary.train.checkpoints.shards import INDEX, PlainLoader, ShardReader, ShardWriter

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
STATE = {"model": {"w": torch.arange(6.0)}, "rates": {"lr": 0.1, "betas": (0.9, 0.99), "on": None}}


class Harm:
    """A pickle of this makes a file when it is read by a full unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000001"
    dcp.save(STATE, storage_writer=ShardWriter(path), no_dist=True)
    return path


def load(path: Path) -> dict[str, Any]:
    state = {"model": {"w": torch.zeros(6)}, "rates": {"lr": 0.0, "betas": (), "on": True}}
    dcp.load(state, storage_reader=ShardReader(path), planner=PlainLoader(), no_dist=True)
    return state


def test_plain_values_come_back_as_they_were(saved: Path) -> None:
    state = load(saved)
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert state["rates"] == STATE["rates"]


def test_harm_among_the_values_is_not_run(saved: Path, tmp_path: Path) -> None:
    """The bytes of one value are replaced by a pickle of as many bytes."""
    told, harm = tmp_path / "harmed", pickle.dumps(Harm(tmp_path / "harmed"))
    stored = json.loads((saved / INDEX).read_text())["stored"]
    [(file, start, size)] = [tuple(one[3:]) for one in stored if one[0] == "rates.lr"]
    content = bytearray((saved / file).read_bytes())
    assert len(harm) <= size
    content[start : start + len(harm)] = harm
    (saved / file).write_bytes(content)
    with pytest.raises(CheckpointException, match=r"rates\.lr"):
        load(saved)
    assert not told.exists()
    pickle.loads(harm)
    assert told.exists(), "a full unpickler would have run it"


@pytest.mark.parametrize("name", [".metadata", INDEX])
def test_harm_in_the_index_is_not_run(saved: Path, tmp_path: Path, name: str) -> None:
    (saved / INDEX).unlink()
    (saved / name).write_bytes(pickle.dumps(Harm(tmp_path / "harmed")))
    with pytest.raises(SpecError, match=INDEX):
        load(saved)
    assert not (tmp_path / "harmed").exists()


def test_an_index_that_leads_out_of_the_folder_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes((saved / "__0_0.distcp").read_bytes())
    (saved / INDEX).write_text((saved / INDEX).read_text().replace("__0_0", "../__0_0"))
    with pytest.raises(SpecError, match="no file of the folder"):
        load(saved)
