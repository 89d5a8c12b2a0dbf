"""Checkpoints on a store as well: sent beside training, fetched where the disk is gone; a store
that does not answer stops nothing.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from armillary.spec import SpecError
from armillary.train.checkpoints.mirror import Mirror
from armillary.train.checkpoints.objects import open_objects
from armillary.train.checkpoints.saved import checkpoint_path, find_fault, saved_steps
from armillary.train.request import new_request, resumed_request
from tests.fault.door import TROUBLE
from tests.object_server import KEYS, ObjectServer
from tests.parity.runs import Result


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    (tmp_path / "served" / "kept").mkdir(parents=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS[1])
    with ObjectServer(tmp_path / "served", keys=KEYS, is_written=True) as found:
        yield found


def _url(server: ObjectServer, retry_s: float = 20.0) -> str:
    return f"s3://kept/runs?endpoint={server.endpoint}&retry_s={retry_s}"


def _train(runs: Path, run: Path | None = None, **assignments: str) -> Result:
    from armillary.train.rank import train_rank

    if run is None:
        request = new_request(TROUBLE, runs=runs, quiet=True, trackers=(), assignments=assignments)
    else:
        request = resumed_request(run, quiet=True, trackers=(), assignments=assignments)
    outcome = train_rank(replace(request, quiet=True))
    return Result(outcome.run_path, outcome.exit_code)


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_a_run_whose_disk_is_gone_goes_on_from_the_store(
    tmp_path: Path, server: ObjectServer, kind: str
) -> None:
    url = _url(server) if kind == "s3" else str(tmp_path / "elsewhere")
    whole = _train(tmp_path / "whole")
    ours = _train(tmp_path / "ours", checkpoint_store=url, max_steps="13")
    shutil.rmtree(ours.folder.checkpoints)
    again = _train(tmp_path, ours.path, max_steps="0")
    assert again.events("store") and "step-00000013 fetched" in again.events("store")[0]
    assert "after step 13" in again.events("resumed")[0]
    assert again.losses == whole.losses
    files = [path for path in ours.path.rglob("*") if path.is_file()]
    assert not any(KEYS[1].encode() in path.read_bytes() for path in files), "a secret was written"


def test_a_damaged_checkpoint_on_the_store_is_not_taken(
    tmp_path: Path, server: ObjectServer
) -> None:
    ours = _train(tmp_path / "ours", checkpoint_store=_url(server), max_steps="13")
    [stored] = (tmp_path / "served").glob("kept/runs/*/step-00000013/*.distcp")
    stored.write_bytes(bytes(stored.stat().st_size))
    newest = checkpoint_path(ours.folder.checkpoints, 13)
    shutil.rmtree(newest)
    again = _train(tmp_path, ours.path, max_steps="0")
    assert "is not whole" in again.events("store")[0]
    assert "after step 12" in again.events("resumed")[0]


def _wait_for(said: list[str], words: str, ask: Callable[[], list[str]]) -> None:
    give_up_s = time.monotonic() + 30
    while not any(words in message for message in said):
        assert time.monotonic() < give_up_s, said
        said += ask()
        time.sleep(0.05)


def test_a_store_that_is_gone_for_a_while_stops_nothing(
    tmp_path: Path, server: ObjectServer
) -> None:
    ours = _train(tmp_path / "ours", max_steps="13", keep_checkpoints="9")
    folder = ours.folder.checkpoints
    mirror = Mirror(open_objects(_url(server, retry_s=1.0), "run"), folder)
    first, second, third = saved_steps(folder)[:3]
    server.stop()
    began_s = time.monotonic()
    said = mirror.send(first)
    assert time.monotonic() - began_s < 0.5, "training does not wait for a store"
    _wait_for(said, f"did not take step-{first:08d}", mirror._take_said)
    server.start()
    said = mirror.send(second)
    _wait_for(said, f"takes checkpoints again: step-{second:08d}", mirror._take_said)
    mirror.send(third)
    assert mirror.finish() == []
    there = {path.parent.name for path in (tmp_path / "served").glob("kept/runs/run/*/*")}
    newest = f"step-{max(saved_steps(folder)):08d}"
    assert newest in there and len(there) == 2, "the newest, and one before"
    assert find_fault(tmp_path / "served" / "kept" / "runs" / "run" / newest) is None


def test_what_is_no_store_is_refused() -> None:
    with pytest.raises(SpecError, match="store"):
        open_objects("ftp://host/folder", "run")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://bucket/folder", "'gs://bucket/folder'"),
        ("s3://", "'s3://'"),
        ("s3://bucket?endpont=http://host", "endpont=http://host is not known"),
        ("s3://bucket?retry_s=soon", "retry_s=soon"),
        ("s3://key:hidden@bucket/folder", "a key or a password"),
    ],
)
def test_an_address_that_is_none_is_refused_before_a_rank_starts(url: str, said: str) -> None:
    with pytest.raises(SpecError, match="checkpoint_store") as refused:
        new_request("weather", assignments={"checkpoint_store": url})
    assert said in str(refused.value) and "hidden" not in str(refused.value)
