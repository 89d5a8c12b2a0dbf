"""How long a checkpoint holds training up, beside saves that wait until all is written."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoint_rank import NUM_STEPS_AFTER
from benchmarks.ratios import interval_of, ratio_of

LAYOUTS = ("data=1", "data=2")
OURS, NONE = "armillary", "none"


def measure(num_rounds: int) -> list[dict[str, Any]]:
    """One row a layout: seconds of hold-up, and what the steps after it took longer."""
    rows = [_row(_launch(layout, num_rounds)) for layout in LAYOUTS]
    for row in rows:
        for name, found in row["saves"].items():
            print(
                f"checkpoint {row['layout']} {name}: held up {found['held_s'] * 1e3:.1f} ms, "
                f"steps after it {found['slowed_s'] * 1e3:+.1f} ms"
            )
    return rows


def _launch(layout: str, num_rounds: int) -> dict[str, Any]:
    num_ranks = int(layout.partition("=")[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        words = ["-m", "benchmarks.checkpoint_rank", layout, str(num_rounds), str(out)]
        if num_ranks > 1:
            words = [
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={num_ranks}",
                *words,
            ]
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"checkpoint {layout}\n{done.stderr[-4000:]}")
        return json.loads(out.read_text())


def _row(found: dict[str, Any]) -> dict[str, Any]:
    saves = {name: np.asarray(times) for name, times in found["saves"].items()}
    after_none = saves[NONE][:, 1]
    step_s = float(np.median(after_none)) / NUM_STEPS_AFTER
    row: dict[str, Any] = {
        "layout": found["layout"],
        "bytes": found["bytes"],
        "step_s": step_s,
        "held_steps": interval_of(saves[OURS][:, 0] / step_s).to_dict(),
        "saves": {},
        "ratio": {},
    }
    for name, times in saves.items():
        if name == NONE:
            continue
        slowed = times[:, 1] - after_none
        row["saves"][name] = {
            "held_s": float(np.median(times[:, 0])),
            "slowed_s": float(np.median(slowed)),
            "num_steps_after": NUM_STEPS_AFTER,
        }
        if name != OURS:
            row["ratio"][name] = ratio_of(saves[OURS][:, 0], times[:, 0]).to_dict()
    return row
