"""Every word of the command line, as a person types it and as a program reads it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

CASE = '''
"""A sine to learn."""
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

settings = {"epochs": 3, "global_batch_size": 32}
monitor = "min:mae"


def model(hidden_size: int = 16):
    return nn.Sequential(nn.Linear(1, hidden_size), nn.Tanh(), nn.Linear(hidden_size, 1))


def data(num_samples: int = 256):
    x = torch.linspace(0, 1, num_samples)[:, None]
    every = TensorDataset(x, torch.sin(6 * x))
    parts = [torch.utils.data.Subset(every, range(k, num_samples, 4)) for k in range(4)]
    train = torch.utils.data.ConcatDataset(parts[:2])
    return {"train": train, "validation": parts[2], "test": parts[3]}


def loss(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def optimizer(params):
    return torch.optim.AdamW(params, lr=1e-2)


def predict(model, batch):
    return {"y": model(batch[0])[:, 0], "truth": batch[1][:, 0] if len(batch) > 1 else batch[0]}


def metrics(predictions):
    return {"mae": float(np.abs(predictions["y"] - predictions["truth"]).mean())}


def rivals(data):
    truth = np.array([float(y) for _, y in data["test"]])
    return {"mean": {"y": np.full(len(truth), truth.mean()), "truth": truth}}


def read(path):
    return TensorDataset(torch.from_numpy(np.loadtxt(path, ndmin=2).astype(np.float32)))


def rows(predictions, dataset):
    return {"x": dataset.tensors[0][:, 0].numpy(), "y": predictions["y"]}
'''


def armillary(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command with `words`, run in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "armillary.cli", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("story")
    (path / "my_case.py").write_text(CASE)
    return path


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, object]:
    done = armillary("train", "my_case.py", "--set", "hidden_size=8", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    outcome: dict[str, object] = json.loads(done.stdout)
    return outcome


def test_train_leaves_a_run_that_reads_without_armillary(
    folder: Path, trained: dict[str, object]
) -> None:
    run = folder / str(trained["run"])
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["options"] == {"hidden_size": 8, "num_samples": 256}
    assert manifest["num_parameters"] == 25
    assert (run / "recipe.py").read_text() == CASE
    kinds = [json.loads(line)["kind"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("step") == trained["num_steps"] == 12
    assert kinds.count("evaluation") == 4  # three of validation, one of the test split
    assert list((run / "tensorboard").glob("events*"))
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["metrics"]["mae"]["rivals"]["mean"]["value"] > 0
    page = (run / "report.html").read_text()
    assert "my_case" in page


def test_report_says_the_same_to_a_program(folder: Path, trained: dict[str, object]) -> None:
    (folder / str(trained["run"]) / "report.html").unlink()
    written = armillary("report", trained["run"], folder=folder)
    assert Path(folder, written.stdout.strip()).is_file()
    told = json.loads(armillary("report", trained["run"], "--json", folder=folder).stdout)
    assert told["num_steps" if "num_steps" in told else "steps"] == 12


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_predict_writes_a_table(folder: Path, trained: dict[str, object], suffix: str) -> None:
    np.savetxt(folder / "points.txt", np.linspace(0, 1, 70))
    out = folder / f"scores{suffix}"
    done = armillary("predict", trained["run"], "points.txt", "--out", out, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_rows"] == 70
    if suffix == ".npz":
        columns = dict(np.load(out))
    else:
        pandas = pytest.importorskip("pandas")
        table = pandas.read_parquet(out) if suffix == ".parquet" else pandas.read_csv(out)
        columns = {name: table[name].to_numpy() for name in table}
    assert list(columns) == ["x", "y"]
    assert columns["x"].shape == columns["y"].shape == (70,)
    assert len(np.unique(columns["y"])) > 60


def test_a_resumed_run_goes_on(folder: Path, trained: dict[str, object]) -> None:
    words = ("train", "--resume", trained["run"], "--set", "epochs=4", "--json")
    done = armillary(*words, folder=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_steps"] == 16


def test_recipes_and_doctor_tell_people_and_programs(folder: Path) -> None:
    assert "weather" in armillary("recipes", folder=folder).stdout
    assert "weather" in json.loads(armillary("recipes", "--json", folder=folder).stdout)
    found = json.loads(armillary("doctor", "--json", folder=folder).stdout)
    assert found["backends"]["gloo"] is True
    assert found["launcher"]["found"] == "none"
    assert found["versions"]["torch"]
    assert "gloo yes" in armillary("doctor", folder=folder).stdout


@pytest.mark.parametrize(
    ("words", "where", "fix"),
    [
        (["train"], "recipe", "armillary recipes"),
        (["train", "wether"], "recipe", "weather"),
        (["train", "none.py"], "recipe", "armillary recipes"),
        (["train", "my_case.py", "--set", "epoch=3"], "epoch", "epochs"),
        (["train", "my_case.py", "--set", "epochs=many"], "settings.epochs", "10"),
        (["train", "my_case.py", "--layout", "dta=2"], "layout.dta", "data"),
        (["train", "my_case.py", "--layout", "data=0"], "layout.data", "data=1"),
        (["train", "my_case.py", "--layout", "precision=bf16"], "layout.precision", "bfloat16"),
        (["train", "my_case.py", "--device", "abacus"], "device", "cpu"),
        (["train", "my_case.py", "--tracker", "paper"], "--tracker", "use one of them"),
        (["train", "my_case.py", "--data", "."], "--data", "path"),
        (["train", "my_case.py", "--resume", "runs"], "--resume", "leave the recipe out"),
        (["train", "--resume", "nowhere"], "run", "such as runs/"),
        (["report", "nowhere"], "run", "such as runs/"),
        (["predict", "nowhere", "x", "--out", "y.parquet"], "run", "such as runs/"),
        (["predict", "nowhere", "x", "--out", "y.xlsx"], "--out", "y.parquet"),
    ],
)
def test_a_mistake_is_told_in_four_parts(
    folder: Path,
    words: list[str],
    where: str,
    fix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from armillary.cli import main

    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["armillary", *words, "--json"])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = json.loads(capsys.readouterr().out)["error"]
    assert where in error["where"]
    assert fix in error["fix"]
    monkeypatch.setattr("sys.argv", ["armillary", *words])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert error["rule"] in capsys.readouterr().err


def test_a_mistake_shows_no_traceback(folder: Path) -> None:
    done = armillary("train", "none.py", folder=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("recipe: no file none.py\n  rule  ")
    assert "Traceback" not in done.stderr
