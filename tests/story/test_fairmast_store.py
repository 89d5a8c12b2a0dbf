"""A user reads shots of MAST from an S3 store and makes a table of them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.object_server import (
    FOLDER,
    KEYS,
    PEAK_A,
    QUENCH_S,
    REAL_SHOT_ID,
    SHOT_ID,
    URL,
    ObjectServer,
    unpack_real_shot,
    write_shot,
)

pytest.importorskip("zarr")
pytest.importorskip("obstore")

from armillary.feeds.fairmast import FairMast, export_npz, main, table_rows
from armillary.feeds.resample import Signal, hold_last, resample
from armillary.feeds.shots import VARIABLES, read_shots

OLDER_ID, NEWER_ID = SHOT_ID, SHOT_ID + 9


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("buckets")
    write_shot(root, OLDER_ID, zarr_format=2)
    write_shot(root, NEWER_ID, zarr_format=3)
    return root


@pytest.fixture(scope="module")
def server(bucket: Path) -> Iterator[ObjectServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        with ObjectServer(bucket) as running:
            yield running


@pytest.fixture
def store(server: ObjectServer) -> FairMast:
    return FairMast(url=URL, endpoint=server.endpoint, retry_s=10)


def quench(time_s: np.ndarray, current: np.ndarray) -> tuple[float, float]:
    """The last time above 80 % of the greatest current, and how long it takes to 20 %."""
    size = np.abs(current)
    begin, end = (time_s[np.flatnonzero(size >= part * size.max())[-1]] for part in (0.8, 0.2))
    return float(begin), float(end - begin)


def test_lists_the_shots_without_keys(store: FairMast) -> None:
    assert store.shots() == [OLDER_ID, NEWER_ID]


@pytest.mark.parametrize("shot_id", [OLDER_ID, NEWER_ID], ids=["zarr v2", "zarr v3"])
def test_reads_both_zarr_formats(store: FairMast, shot_id: int) -> None:
    shot = store.open(shot_id)
    assert list(shot) == [
        "equilibrium/minor_radius",
        "equilibrium/q95",
        "soft_x_rays/tcam",
        "summary/ip",
        "summary/power_nbi",
    ]
    time_s, values, units = shot["summary/ip"]
    assert units == "A"
    assert time_s.shape == values.shape
    begin, fall_s = quench(time_s, values)
    assert begin == pytest.approx(QUENCH_S, abs=1e-3)
    assert fall_s == pytest.approx(0.6 * 0.003, abs=5e-4)
    camera = shot["soft_x_rays/tcam"]
    assert camera.values.shape == (len(camera.time_s), 18)  # time first
    assert camera.values[0].tolist() == list(range(18))
    assert "summary/time" not in set(shot) and "summary/none" not in shot


def test_signed_requests_to_a_private_store(bucket: Path) -> None:
    with ObjectServer(bucket, keys=KEYS) as private:
        store = FairMast(
            url=URL,
            endpoint=private.endpoint,
            access_key_id=KEYS[0],
            secret_access_key=KEYS[1],
            retry_s=5,
        )
        assert store.shots() == [OLDER_ID, NEWER_ID]
        assert KEYS[1] not in repr(store)


def test_goes_to_another_process(store: FairMast) -> None:
    assert pickle.loads(pickle.dumps(store)) == store


def test_a_local_folder_is_a_store_too(bucket: Path, store: FairMast) -> None:
    local = FairMast(url=str(bucket / "mast" / FOLDER))
    assert local.shots() == store.shots()
    here, there = local.open(OLDER_ID)["summary/ip"], store.open(OLDER_ID)["summary/ip"]
    assert np.array_equal(here.values, there.values)


def test_rows_never_know_the_future() -> None:
    rng = np.random.default_rng(0)
    time_s = np.sort(rng.uniform(0, 1, 300))
    values = rng.normal(size=300)
    values[rng.uniform(size=300) < 0.2] = np.nan
    full = resample({"a/b": Signal(time_s, values, "kA")}, {"x": "a/b"}, hold_s=0.02)
    for cut_s in (0.2, 0.5, 0.8):
        changed = np.where(time_s > cut_s, 1e9, values)
        other = resample({"a/b": Signal(time_s, changed, "kA")}, {"x": "a/b"}, hold_s=0.02)
        past = full.time_s < cut_s
        assert np.array_equal(full.values[past], other.values[past], equal_nan=True)
    assert full.units == ("A",)
    assert np.array_equal(full.mask, np.isfinite(full.values))


def test_a_value_is_held_but_not_for_ever() -> None:
    at_s = np.array([0.0, 0.009, 0.011, 0.5])
    held = hold_last(np.array([0.0, 0.4]), np.array([3.0, np.nan]), at_s, hold_s=0.01)
    assert held[:2].tolist() == [3.0, 3.0]
    assert np.isnan(held[2:]).all()
    # float32 times a hair after their row still belong to it
    late = np.array([0.05], np.float32)
    assert hold_last(late, np.array([7.0]), np.array([0.05])).tolist() == [7.0]


def test_a_table_from_the_store(store: FairMast, tmp_path: Path) -> None:
    out = tmp_path / "shots.npz"
    lines: list[str] = []
    path, skipped = export_npz(store, [OLDER_ID, 99, NEWER_ID], out, lines.append)
    assert path == out
    assert [shot_id for shot_id, _ in skipped] == [99]
    assert any(line.startswith("99") for line in lines)
    table = read_shots(out)
    assert table.shot_ids == (OLDER_ID, NEWER_ID)
    assert table.variables == VARIABLES and table.has_times
    assert np.array_equal(table.series[0], table.series[1], equal_nan=True)
    assert table.time_s[0][0] == pytest.approx(0.015)
    assert np.allclose(np.diff(table.time_s[0]), 0.005)
    rows = table.series[0]
    assert np.isnan(rows[:, table.column("p_rad")]).all()  # not in this store
    assert np.nanmax(rows[:, table.column("Ip")]) == pytest.approx(PEAK_A)
    assert np.nanmax(rows[:, table.column("p_nbi")]) == pytest.approx(1.5e6)  # MW in the store
    limit = rows[-1, table.column("greenwald_den")]
    assert limit == pytest.approx(1e20 * 0.8 / (np.pi * 0.6**2), rel=1e-4)


def test_the_command_a_user_types(server: ObjectServer, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "shots.npz"
    command = [
        sys.executable,
        "-m",
        "armillary.feeds.fairmast",
        "--shots",
        f"{OLDER_ID},{NEWER_ID}",
    ]
    command += ["--out", str(out), "--url", URL, "--endpoint", server.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 shots, 0 left out" in done.stdout
    assert len(read_shots(out)) == 2


def test_the_command_refuses_in_four_parts(
    server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--out", str(tmp_path / "x.npz"), "--url", URL, "--endpoint", server.endpoint]
    assert main(["--shots", "thirty", *given]) == 2
    said = capsys.readouterr().err
    assert "rule" in said and "fix" in said
    assert not (tmp_path / "x.npz").exists()


def test_the_cache_answers_once_it_has_read(bucket: Path, tmp_path: Path) -> None:
    with ObjectServer(bucket) as server:
        store = FairMast(url=URL, endpoint=server.endpoint, retry_s=0.2, cache=tmp_path / "cache")
        shot = store.open(OLDER_ID)
        first = shot["summary/ip"]
        server.stop()
        again = shot["summary/ip"]
    assert np.array_equal(first.values, again.values)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert any(path.parent.name == "ip" for path in kept)
    assert not any(path.name.endswith(".partial") for path in kept)
    # laid out as the store is, so it can be named as a local one
    folder = next((tmp_path / "cache").rglob(f"{OLDER_ID}.zarr"))
    assert FairMast(url=str(folder.parent)).shots() == [OLDER_ID]


def test_a_real_shot_ends_as_it_did(shared_data: Path, tmp_path: Path) -> None:
    """Shot 23341: the current falls from 80 to 20 % of 752 kA within about 2 ms, at 0.206 s."""
    unpack_real_shot(shared_data, tmp_path)
    with ObjectServer(tmp_path) as server:
        store = FairMast(url=URL, endpoint=server.endpoint, retry_s=10)
        assert store.shots() == [REAL_SHOT_ID]
        shot = store.open(REAL_SHOT_ID)
        current = shot["summary/plasma_current"]
        assert current.units == "kA"
        assert np.nanmax(current.values) == pytest.approx(752.3, abs=0.5)
        begin, fall_s = quench(current.time_s, current.values)
        assert begin == pytest.approx(0.206, abs=0.001)
        assert 1e-3 < fall_s < 3e-3
        camera = shot["soft_x_rays/tcam"]
        assert camera.values.shape == (194_000, 18)
        assert np.median(np.diff(camera.time_s)) == pytest.approx(2e-6, rel=1e-3)
        rows = table_rows(shot)
    known = dict(zip(rows.names, rows.mask.mean(axis=0), strict=True))
    assert rows.missing == ("p_rad",)
    assert all(share > 0.9 for name, share in known.items() if name != "p_rad")
    late = rows.values[rows.time_s > 0.208, VARIABLES.index("Ip")]
    assert np.nanmax(np.abs(late)) < 0.2 * 752e3
