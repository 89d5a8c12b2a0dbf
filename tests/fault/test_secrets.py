"""Keys and passwords reach neither a run's folder nor what it prints; its folder is closed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from armillary.spec import SpecError, closed_to_others
from armillary.spec.secrets import WITHHELD, holds_key, holds_secret, withheld
from armillary.train.folder.environment import variables
from armillary.train.folder.run_folder import RunFolder
from armillary.train.request import new_request, resumed_request
from tests.fault.door import TROUBLE, only_run, train
from tests.parity.runs import Bench

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCY"
HERE = {"AWS_SECRET_ACCESS_KEY": SECRET, "WANDB_API_KEY": "0123456789abcdef", "DEBUG_KEY": "true"}


@pytest.mark.parametrize(
    "text",
    [
        f"could not sign with {SECRET}",
        "s3://me:hunter2222@store/data",
        "GET /x?X-Amz-Signature=abcdef123456&y=1",
        "password=hunter2222",
        "Authorization: Bearer abc.def-123456",
        "hf_" + "a" * 30,
        "AKIA" + "Z" * 16,
        "key 0123456789abcdef",
        "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_a_secret_is_withheld(text: str) -> None:
    found = withheld(text, HERE)
    assert WITHHELD in found
    for part in (SECRET, "hunter2222", "abcdef123456", "abc.def", "aaaa", "ZZZZ", "0123456789"):
        assert part not in found


@pytest.mark.parametrize(
    "text",
    [
        "loss 0.25 at step 12: epoch 0, positions 3 to 4",
        "https://example.org/page?sig_figs=3 and user@example.org",
        "num_tokens=512 pad_token=<pad> key_dim=64 is true",
        "Traceback (most recent call last): inspect.signature(model)",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert withheld(text, HERE) == text


def test_words_about_a_key_are_no_key() -> None:
    assert not holds_key("client(api_key=os.environ['STORE_KEY'], url=f's3://{u}:{p}@h')", {})
    assert holds_secret("s3://me:hunter2222@store", {}) and not holds_secret("s3://store/x", {})


def test_only_variables_that_change_computing_are_kept() -> None:
    kept = variables(
        {"NCCL_NET": "IB", "OMP_NUM_THREADS": "1", "FI_HTTP": f"x{SECRET}", "HOME": "/", **HERE}
        | {"I_MPI_KEY": "12345678"}
    )
    assert set(kept) == {"NCCL_NET", "OMP_NUM_THREADS", "FI_HTTP"}


OPENING = """
import os
from pathlib import Path
exec(Path({path!r}).read_text())
KEY = "{key}"
def data(url: str = "", store_password: str = "", trouble: str = "", flag: str = "",
         pause_s: float = 0.0):
    key = os.environ["STORE_SECRET_KEY"]
    os.environ["TEST_PAUSE_S"] = "0"
    if trouble == "store":
        raise RuntimeError(f"the store refused {{key}}")
    return {{"train": Samples(64, "", flag), "validation": Samples(8, "", "")}}
"""


def recipe(folder: Path, key: str = "") -> str:
    path = folder / "case.py"
    path.write_text(OPENING.format(path=TROUBLE, key=key))
    return str(path)


def test_a_secret_is_not_taken_as_an_option(tmp_path: Path) -> None:
    for words in ({"store_password": "x"}, {"url": "s3://me:hunter2222@store/x"}):
        with pytest.raises(SpecError, match="key or a password") as caught:
            new_request(recipe(tmp_path), assignments=words)
        assert "hunter2222" not in str(caught.value) and "os.environ" in caught.value.fix
    with pytest.raises(SpecError, match="stands in the source"):
        new_request(recipe(tmp_path, key="hf_" + "a" * 30))
    new_request(recipe(tmp_path), assignments={"url": "s3://store/x"})


@pytest.mark.slow
def test_a_secret_is_in_no_file_and_on_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's key is in the environment, in an error's text and in another's words."""
    monkeypatch.setenv("STORE_SECRET_KEY", SECRET)
    monkeypatch.setenv("NCCL_DEBUG_FILE", f"/tmp/{SECRET}")
    exit_code, said = train(recipe(tmp_path), "--runs", str(tmp_path / "runs"))
    assert exit_code == 0, said
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"manifest.json", "report.html", "metrics.jsonl"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert f"/tmp/{WITHHELD}" in (only_run(tmp_path / "runs") / "manifest.json").read_text()
    exit_code, told = train(recipe(tmp_path), "--set", "trouble=store", "--runs", str(tmp_path))
    assert exit_code == 1 and f"the store refused {WITHHELD}" in told, told
    assert SECRET not in told + said


def test_a_secret_is_in_no_event(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append({"kind": "event", "what": "store", "message": "s3://me:hunter2222@store"})
    run.close()
    assert run.metrics() == [
        {"kind": "event", "what": "store", "message": f"s3://me:{WITHHELD}@store"}
    ]


def test_a_run_folder_is_closed_to_others(tmp_path: Path) -> None:
    with closed_to_others():
        (tmp_path / "inside").touch()
    before = os.umask(0)
    try:
        run = RunFolder.create(tmp_path / "runs", "case").path
        with closed_to_others():
            (run / "file").touch()
        (run / "open").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode for path in (run.parent, run, run / "file")}
    assert [name for name, mode in modes.items() if mode & stat.S_IWOTH] == []
    assert (run / "open").stat().st_mode & stat.S_IWOTH, "the umask is as it was afterwards"


def test_code_that_everybody_could_have_written_is_not_run(bench: Bench, tmp_path: Path) -> None:
    """A resumed run takes its own copy of a recipe that is gone, unless the copy was open."""
    stopped = bench.train(TROUBLE, "", stop_after=3)
    manifest = stopped.path / "manifest.json"
    told = tmp_path / "ran"
    changed = tmp_path / "trouble.py"
    changed.write_text(f"open({str(told)!r}, 'w')")
    manifest.write_text(manifest.read_text().replace(TROUBLE, str(changed)))
    assert resumed_request(stopped.path).recipe_word == str(stopped.path / "recipe.py")
    assert not told.exists(), "a recipe that changed is looked at, and not run"
    (stopped.path / "recipe.py").chmod(0o666)
    with pytest.raises(SpecError, match="written by everybody"):
        resumed_request(stopped.path)
