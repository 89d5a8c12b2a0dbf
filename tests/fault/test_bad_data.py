"""Shot data that is missing, torn, foreign or out of reach: each time a message that helps."""

from __future__ import annotations

import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armillary.feeds import shots
from armillary.feeds.fairmast import FairMast, export_npz
from armillary.feeds.shots import VARIABLES, find_shots, read_shots, write_shots
from armillary.spec import SpecError
from tests.object_server import (
    BUCKET,
    FOLDER,
    KEYS,
    PEAK_A,
    SHOT_ID,
    URL,
    CuttingProxy,
    ObjectServer,
    write_shot,
)

NUM_ROWS = 12


def content(**changes: Any) -> dict[str, Any]:
    """The arrays of a good table of three shots, four rows each; None leaves a key out."""
    data = np.ones((NUM_ROWS, 16), np.float32)
    data[:, VARIABLES.index("Ip")] = np.linspace(1e5, 8e5, NUM_ROWS)
    arrays: dict[str, Any] = {
        "data": data,
        "shot_ids": np.repeat([30001, 30002, 30003], 4).astype(np.int32),
        "variables": np.array(VARIABLES),
    }
    arrays.update(changes)
    return {key: value for key, value in arrays.items() if value is not None}


def saved(folder: Path, **changes: Any) -> Path:
    path = folder / "mast_level2.npz"
    np.savez_compressed(path, **content(**changes))
    return path


def refused(action: Callable[[], Any], *words: str) -> SpecError:
    """The SpecError that the action raises; its text holds the words."""
    with pytest.raises(SpecError) as caught:
        action()
    text = str(caught.value)
    assert "rule" in text and "fix" in text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    return caught.value


# ------------------------------------------------------------------------------------- the table


def test_a_good_table_by_file_folder_parent_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mast-shots-5ms").mkdir()
    path = saved(tmp_path / "mast-shots-5ms")
    monkeypatch.setenv("ARMILLARY_DATA", str(tmp_path))
    assert find_shots(path) == find_shots(path.parent) == find_shots(tmp_path) == find_shots()
    table = read_shots()
    assert table.shot_ids == (30001, 30002, 30003) and len(table) == 3
    assert [series.shape for series in table.series] == [(4, 16)] * 3
    assert table.time_s[1].tolist() == [0.0, 0.005, 0.01, 0.015]
    assert table.skipped == () and table.rows[1] == slice(4, 8) and table.num_rows == NUM_ROWS


def test_nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARMILLARY_DATA", raising=False)
    refused(read_shots, "ARMILLARY_DATA", "python -m armillary.feeds.fairmast")


def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: read_shots(tmp_path / "gone.npz"), "gone.npz does not exist")
    refused(lambda: read_shots(tmp_path), "holds no shot table", "mast_level2.npz")
    monkeypatch.setenv("ARMILLARY_DATA", str(tmp_path / "away"))
    assert refused(read_shots, "away").where == "ARMILLARY_DATA"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser reads everything: let the system refuse by hand

        def no(*given: Any, **named: Any) -> Any:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", no)
    refused(lambda: read_shots(path), "may not be read", "chmod u+r")


@pytest.mark.parametrize(
    ("torn", "words"),
    [
        (lambda whole: b"", "empty (0 bytes)"),
        (lambda whole: b"shot,time,Ip\n1,2,3\n", "not a zip"),
        (lambda whole: whole[: len(whole) // 2], "cut short"),
        (lambda whole: whole[:-30], "cut short"),
        (lambda whole: whole[:200] + bytes(80) + whole[280:], "cannot be read"),
    ],
    ids=["empty", "text", "half", "without its end", "overwritten inside"],
)
def test_torn_and_foreign_files(tmp_path: Path, torn: Callable[[bytes], bytes], words: str) -> None:
    path = saved(tmp_path)
    path.write_bytes(torn(path.read_bytes()))
    refused(lambda: read_shots(path), "mast_level2.npz", words)


def test_other_archives(tmp_path: Path) -> None:
    path = tmp_path / "mast_level2.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no arrays here")
    refused(lambda: read_shots(path))
    np.savez(path, data=np.array([{"a": 1}], dtype=object), shot_ids=[1], variables=["Ip"])
    refused(lambda: read_shots(path), "pickle")  # never unpickled


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": None}, "lacks data"),
        ({"shot_ids": None, "variables": None}, "lacks shot_ids, variables"),
        ({"data": np.ones(NUM_ROWS)}, "data: has shape (12,)"),
        ({"data": np.full((NUM_ROWS, 16), "x")}, "data: has shape"),
        ({"shot_ids": np.arange(5)}, "shot_ids: has shape (5,)"),
        ({"shot_ids": np.linspace(0, 1, NUM_ROWS)}, "whole numbers"),
        ({"shot_ids": np.full(NUM_ROWS, np.nan)}, "without NaN"),
        ({"variables": np.array(VARIABLES[:9])}, "variables: has shape (9,)"),
        ({"variables": np.array([*VARIABLES[:15], "other"])}, "lacks p_nbi"),
        ({"data": np.ones((0, 16)), "shot_ids": np.ones(0, int)}, "no rows"),
        ({"time_s": np.ones(3)}, "time_s: has shape (3,)"),
        ({"data": np.full((NUM_ROWS, 16), np.nan)}, "none of 3 shots"),
    ],
)
def test_arrays_of_another_form(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = saved(tmp_path, **changes)
    refused(lambda: read_shots(path), words)


def test_bad_shots_are_named_and_left_out(tmp_path: Path) -> None:
    column = VARIABLES.index("Ip")
    good = content()["data"][:4]
    dark, still, endless = good.copy(), good.copy(), good.copy()
    dark[:, column], still[:, column], endless[2, 3] = np.nan, 0, np.inf
    gappy = good.copy()
    gappy[1, column], gappy[:, 14] = np.nan, np.nan
    parts = {1: good, 2: dark, 3: good[:2], 4: still, 5: endless, 6: gappy}
    ids = [shot_id for shot_id, rows in parts.items() for _ in rows]
    data = np.concatenate([*parts.values(), good[:3]])
    path = saved(tmp_path, data=data, shot_ids=np.array([*ids, 1, 1, 1]))
    table = read_shots(path)
    assert table.shot_ids == (6,)
    assert np.isnan(table.series[0][:, 14]).all()  # NaN stays
    reasons = dict(table.skipped)
    assert list(reasons) == [1, 2, 3, 4, 5]
    assert "2 separate places" in reasons[1] and "NaN throughout" in reasons[2]
    assert "2 rows" in reasons[3] and "0 throughout" in reasons[4]
    assert "infinite" in reasons[5] and VARIABLES[3] in reasons[5]


def test_columns_in_another_order_and_more_of_them(tmp_path: Path) -> None:
    plain = read_shots(saved(tmp_path))
    data = content()["data"]
    mixed = np.column_stack([np.zeros(NUM_ROWS), data[:, ::-1]]).astype(np.float64)
    other = read_shots(
        saved(tmp_path, data=mixed, variables=np.array(["extra", *reversed(VARIABLES)]))
    )
    assert np.array_equal(plain.series[0], other.series[0])
    assert plain.fingerprint == other.fingerprint


def test_the_fingerprint_is_of_the_numbers(tmp_path: Path) -> None:
    first = read_shots(saved(tmp_path)).fingerprint
    np.savez(tmp_path / "plain.npz", **content())
    assert read_shots(tmp_path / "plain.npz").fingerprint == first
    changed = content()["data"]
    changed[5, 5] = 2
    assert read_shots(saved(tmp_path, data=changed)).fingerprint != first


def test_a_write_that_fails_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = content()
    path = write_shots(tmp_path / "shots.npz", good["shot_ids"], good["data"])
    before = path.read_bytes()

    def full_disk(sink: Any, **arrays: Any) -> None:
        sink.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shots.np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_shots(path, good["shot_ids"], good["data"] * 2)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["shots.npz"]


# ------------------------------------------------------------------------------------- the store


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    pytest.importorskip("zarr")
    pytest.importorskip("obstore")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    write_shot(tmp_path)
    with ObjectServer(tmp_path) as running:
        yield running


def at(endpoint: str, **changes: Any) -> FairMast:
    return replace(FairMast(url=URL, endpoint=endpoint, retry_s=10), **changes)


def shot_folder(server: ObjectServer) -> Path:
    return server.root / BUCKET / FOLDER / f"{SHOT_ID}.zarr"


def test_a_server_gone_for_a_second(served: ObjectServer) -> None:
    shot = at(served.endpoint).open(SHOT_ID)
    before = shot["summary/ip"]
    served.stop()
    back = threading.Timer(1.0, served.start)
    back.start()
    begin = time.monotonic()
    current = shot["summary/ip"]
    gone_s = time.monotonic() - begin
    back.join()
    assert np.array_equal(before.values, current.values)
    assert 0.9 < gone_s < 8


def test_answers_cut_in_the_middle(served: ObjectServer) -> None:
    proxy = CuttingProxy(served.port, cuts=[600, 900, 400])
    shot = at(proxy.endpoint).open(SHOT_ID)
    values = shot["summary/ip"].values
    proxy.close()
    assert not proxy.cuts  # all three happened
    assert values.max() == pytest.approx(PEAK_A)


def test_an_answer_that_stalls_is_asked_for_anew(served: ObjectServer) -> None:
    proxy = CuttingProxy(served.port, cuts=[1000], stall_s=5)
    shot = at(proxy.endpoint, timeout_s=0.5).open(SHOT_ID)
    begin = time.monotonic()
    values = shot["summary/ip"].values
    proxy.close()
    assert not proxy.cuts and time.monotonic() - begin < 4
    assert values.max() == pytest.approx(PEAK_A)


def test_a_truncated_chunk(served: ObjectServer, tmp_path: Path) -> None:
    chunk = shot_folder(served) / "summary" / "ip" / "1"
    chunk.write_bytes(chunk.read_bytes()[:20])
    store = at(served.endpoint)
    refused(lambda: store.open(SHOT_ID)["summary/ip"], f"{SHOT_ID}.summary/ip", "decoded", "chunk")
    assert store.open(SHOT_ID)["summary/power_nbi"].values.max() == 1.5  # the rest still reads
    write_shot(served.root, SHOT_ID + 1)
    _, skipped = export_npz(store, [SHOT_ID, SHOT_ID + 1], tmp_path / "shots.npz")
    assert [shot_id for shot_id, _ in skipped] == [SHOT_ID]
    assert read_shots(tmp_path / "shots.npz").shot_ids == (SHOT_ID + 1,)


def test_missing_objects(served: ObjectServer) -> None:
    folder = shot_folder(served)
    (folder / "equilibrium" / "q95" / "0").unlink()  # a chunk left out means fill: NaN
    for name in (".zarray", ".zattrs"):
        (folder / "soft_x_rays" / "time" / name).unlink()
    (folder / "soft_x_rays" / ".zmetadata").unlink()
    shot = at(served.endpoint).open(SHOT_ID)
    assert np.isnan(shot["equilibrium/q95"].values).all()
    refused(lambda: shot["soft_x_rays/tcam"], "has no times", "soft_x_rays/time")
    with pytest.raises(KeyError):
        shot["summary/none"]
    with pytest.raises(KeyError):
        shot["nowhere/ip"]


def test_metadata_that_is_no_metadata(served: ObjectServer) -> None:
    (shot_folder(served) / ".zgroup").write_bytes(b'{"zarr_for')
    refused(lambda: at(served.endpoint).open(SHOT_ID), str(SHOT_ID), "metadata")


def test_a_failure_is_not_taken_for_a_missing_signal(served: ObjectServer) -> None:
    shot = at(served.endpoint, retry_s=0.3).open(SHOT_ID)
    served.stop()
    assert refused(lambda: "summary/ip" in shot).where == "store.endpoint"
    served.start()
    assert "summary/ip" in shot


def test_a_shot_a_bucket_an_endpoint_that_are_not_there(
    served: ObjectServer, tmp_path: Path
) -> None:
    store = at(served.endpoint)
    refused(lambda: store.open(30499), "30499", f"use one of {SHOT_ID}")
    refused(lambda: at(served.endpoint, url="s3://nobody/here").open(SHOT_ID))
    assert refused(at("http://127.0.0.1:9", retry_s=0.5).shots).where == "store.endpoint"
    lost = at("http://127.0.0.1:9", retry_s=0.5)
    assert refused(lambda: lost.open(SHOT_ID), "retry_s").where == "store.endpoint"
    refused(lambda: export_npz(lost, [SHOT_ID], tmp_path / "x.npz"), "did not answer")
    assert not (tmp_path / "x.npz").exists()
    refused(FairMast(url=str(tmp_path / "gone")).shots, "no folder")
    refused(at(served.endpoint, url="https://s3.echo.stfc.ac.uk/mast").shots, "s3://")
    refused(lambda: FairMast(url=str(tmp_path / BUCKET / FOLDER)).open(7), "7 is not in")


def test_keys_that_the_store_does_not_know(tmp_path: Path, served: ObjectServer) -> None:
    with ObjectServer(served.root, keys=KEYS) as private:
        wrong = at(private.endpoint, access_key_id=KEYS[0], secret_access_key="wrong")
        begin = time.monotonic()
        fault = refused(wrong.shots, "these keys")
        assert fault.where == "store.credentials" and "wrong" not in str(fault)
        assert time.monotonic() - begin < 5  # no use asking again
        assert refused(lambda: wrong.open(SHOT_ID)).where == "store.credentials"
        refused(at(private.endpoint).shots, "anonymous")
        refused(at(private.endpoint, access_key_id="half").shots, "one key of two")
