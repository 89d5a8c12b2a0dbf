"""Weights and checkpoints from elsewhere: read whole or refused, and no code is run from them."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from armillary.spec import SpecError
from tests.fault.door import TROUBLE
from tests.parity.runs import Bench


class Mine:
    """A pickle of this runs code where it is read."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return Path.touch, (self.flag,)


def test_a_run_is_exported_and_begun_from(bench: Bench, tmp_path: Path) -> None:
    """From two sharding ranks to one file that others read, and into a run on another layout."""
    from armillary.train.checkpoints.weights import export, read_weights

    ours = bench.train(TROUBLE, "sharded=2", average_decay=0.5)
    wanted = ours.parameters()
    for name in ("model.safetensors", "model.pt"):
        written = export(ours.path, tmp_path / name, step=24)
        assert written["tensors"] == len(wanted)
        found = read_weights(tmp_path / name)
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    save_file(found, tmp_path / "theirs.safetensors")
    assert read_weights(tmp_path / "theirs.safetensors").keys() == wanted.keys()
    assert torch.load(tmp_path / "model.pt", weights_only=True).keys() == wanted.keys()


@pytest.mark.parametrize("layout", ["", "sharded=2", "pipeline=2"])
def test_a_run_begins_from_weights(bench: Bench, tmp_path: Path, layout: str) -> None:
    from dataclasses import replace

    from armillary.spec import Layout
    from armillary.train.request import new_request
    from tests.parity.ranks import train_as_rank

    case = str(Path(__file__).parents[1] / "parity" / "cases" / "blocks.py")
    alone = bench.train(case, "precision=float64", max_steps=1)
    path = tmp_path / "begin.safetensors"
    save_file({name: tensor.clone() for name, tensor in alone.parameters().items()}, path)
    request = new_request(
        case,
        layout=Layout.parse(f"{layout},precision=float64"),
        runs=tmp_path,
        quiet=True,
        trackers=(),
        assignments={"max_steps": "1", "seed": "7"},
        weights=path,
    )
    [ended, *_] = bench.ranks.run(
        request.layout.num_ranks, train_as_rank, replace(request, quiet=True), tmp_path, 0
    )
    lines = [json.loads(line) for line in (ended[0] / "metrics.jsonl").read_text().splitlines()]
    [step] = [line for line in lines if line["kind"] == "step"]
    again = bench.train(case, "precision=float64", max_steps=1, seed=7)
    assert step["loss"] != pytest.approx(again.losses[0]), "not begun from new weights"
    assert step["loss"] < alone.losses[0] * 2


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def _long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def _outside(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [8], "data_offsets": [-8, 24]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _long_header, _outside, _empty])
def test_a_damaged_file_of_weights_is_refused(tmp_path: Path, damage: Any) -> None:
    from armillary.train.checkpoints.weights import read_weights

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(8)}, path)
    damage(path)
    with pytest.raises(SpecError, match="--weights"):
        read_weights(path)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    """In a file of weights, in the index of a checkpoint, and in a value among its shards."""
    from armillary.train.checkpoints.saved import load
    from armillary.train.checkpoints.weights import read_weights

    flag = tmp_path / "ran"
    torch.save({"a": Mine(flag)}, tmp_path / "model.pt")
    with pytest.raises(SpecError, match="--weights"):
        read_weights(tmp_path / "model.pt")
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Mine(flag)))
    with pytest.raises(SpecError, match="earlier Armillary"):
        load(folder, {"a": torch.zeros(1)}, serial=True)
    _checkpoint_with(folder, Mine(flag))
    with pytest.raises(SpecError, match="code is never run"):
        load(folder, {"a": 0}, serial=True)
    assert not flag.exists()


def _checkpoint_with(folder: Path, value: object) -> None:
    import io

    content = io.BytesIO()
    torch.save(value, content)
    (folder / "__0_0.distcp").write_bytes(content.getvalue())
    index = {
        "schema": 1,
        "entries": {"a": None},
        "paths": {"a": ["a"]},
        "stored": [["a", None, None, "__0_0.distcp", 0, len(content.getvalue())]],
    }
    (folder / "shards.json").write_text(json.dumps(index))


def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    from armillary.train.checkpoints.shards import read_index

    _checkpoint_with(tmp_path, 1)
    text = (tmp_path / "shards.json").read_text().replace("__0_0", "../__0_0")
    (tmp_path / "shards.json").write_text(text)
    with pytest.raises(SpecError, match="no file of the folder"):
        read_index(tmp_path)


@pytest.mark.parametrize(("number", "is_plain"), [("numpy.float64(0.1)", True), ("Mine()", False)])
def test_an_optimiser_may_hold_numbers_of_numpy(
    tmp_path: Path, number: str, is_plain: bool
) -> None:
    """What could not be read back is refused before it is saved."""
    from armillary.train.launch import train as train_here
    from armillary.train.request import new_request, resumed_request

    case = tmp_path / "scheduled.py"
    case.write_text(
        "import numpy, torch\n"
        "class Mine(float): pass\n"
        "settings = {'epochs': 2, 'global_batch_size': 4, 'max_steps': 2}\n"
        "def model(): return torch.nn.Linear(4, 1)\n"
        "def data(): return {'train': [torch.ones(4)] * 8, 'validation': [torch.ones(4)] * 2}\n"
        "def loss(model, batch): return model(batch).square().mean()\n"
        "def optimizer(params):\n"
        "    found = torch.optim.SGD(params, lr=1.0)\n"
        f"    found.param_groups[0]['mine'] = {number}\n"
        "    return found\n"
    )
    request = new_request(str(case), runs=tmp_path, trackers=(), quiet=True)
    if not is_plain:
        with pytest.raises(SpecError, match="Mine"):
            train_here(request)
        return
    outcome = train_here(request)
    words = {"max_steps": "0"}
    again = resumed_request(outcome.run_path, trackers=(), quiet=True, assignments=words)
    assert train_here(again).num_steps == 4
