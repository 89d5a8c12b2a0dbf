"""Fits of measured collectives: t = start + x / B + gamma sqrt(x), x what one rank sends."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from armillary.networks.fitted import sent_by_rank

Array = NDArray[np.float64]
GLOO = Path(__file__).parent / "results/collectives_gloo.csv"
OPERATIONS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather_into_tensor",
    "reduce_scatter": "reduce_scatter_tensor",
    "alltoall": "all_to_all_single",
}


@dataclass(frozen=True)
class Fit:
    """Constants, and the mean and median absolute relative error on points that were kept out."""

    constants: Array
    held_out_error: float
    held_out_median: float
    num_points: int


@dataclass
class Written:
    """The lines of one device's file, and the tables they come from."""

    lines: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)

    def table(self, path: Path, root: Path) -> str:
        """What to call the table at `path` in a `source`; its hash goes to the head of the file."""
        words = path.relative_to(root).parts
        self.tables["/".join(words)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return " ".join(words[-4:-1])

    def section(self, head: str, values: dict[str, Any]) -> None:
        """One table of the file."""
        self.lines += ["", head]
        for name, value in values.items():
            text = f'"{value}"' if isinstance(value, str) else _number(value)
            self.lines.append(f"{name} = {text}")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def collective_seconds(constants: Array, points: dict[str, Array]) -> Array:
    """start + x / B + gamma sqrt(x), x the bytes that a rank sends."""
    x = points["x"]
    return np.asarray(constants[0] + x / constants[1] + constants[2] * np.sqrt(x))


def collective_points(
    table: pd.DataFrame, operation: str, ranks: int, dtype: str
) -> dict[str, Array]:
    """Bytes sent by a rank and seconds; `message_size` counts values of a rank's whole buffer."""
    rows = table[
        (table.op_name == operation) & (table.num_gpus == ranks) & (table.nccl_dtype == dtype)
    ]
    best = rows.groupby("message_size").latency.min()
    size = best.index.to_numpy(np.float64) * (2.0 if dtype == "half" else 1.0)
    if operation == "alltoall":
        size = size * ranks
    x = sent_by_rank(OPERATIONS[operation], np.array([float(ranks)])) * size
    return {"x": x, "t": best.to_numpy(np.float64) * 1e-3}


def fit_collective(points: dict[str, Array], others: dict[str, Array] | None = None) -> Fit:
    """Three constants from every fourth size for the error, from all sizes for what is written.

    Sizes are doublings, so a fifth of them chosen by chance may leave out all the large ones.
    `others` are points of another run that were not fitted at all; the error is over both.
    """
    start, most = [1e-5, 2e11, 1e-9], [1.0, 1e13, 1e-3]

    def solve(some: dict[str, Array]) -> Array:
        found = least_squares(
            lambda logs: np.log(collective_seconds(np.exp(logs), some) / some["t"]),
            np.log(start),
            bounds=(np.log([1e-7, 1e6, 1e-15]), np.log(most)),
            loss="soft_l1",
            f_scale=0.1,
        )
        return np.asarray(np.exp(found.x))

    index = np.arange(len(points["t"]))
    every_fourth = index % 4 == 0
    some = {name: column[every_fourth] for name, column in points.items()}
    constants = solve(some)
    errors = [np.abs(collective_seconds(constants, points) / points["t"] - 1.0)[~every_fourth]]
    if others is not None and len(others["t"]):
        errors.append(np.abs(collective_seconds(constants, others) / others["t"] - 1.0))
    error = np.concatenate(errors)
    return Fit(solve(points), float(error.mean()), float(np.median(error)), len(index))


def collectives_of(table: pd.DataFrame) -> Iterator[tuple[str, int, Fit]]:
    """(torch's name, ranks, fit) of every collective in the table; int8 rows are kept out."""
    for operation, name in OPERATIONS.items():
        for ranks in sorted(table.num_gpus.unique()):
            points = collective_points(table, operation, int(ranks), "half")
            if len(points["t"]) >= 12:
                others = collective_points(table, operation, int(ranks), "int8")
                yield name, int(ranks), fit_collective(points, others)


def gloo_lines() -> list[str]:
    """The file of gloo over loopback, from the table that is kept here; no point is left out."""
    table = pd.read_csv(GLOO, comment="#").set_index(["collective", "ranks"])
    written = Written()
    for (name, ranks), row in table.iterrows():
        size = row.index.to_numpy(np.float64) * (ranks if name == "all_to_all_single" else 1.0)
        sent = sent_by_rank(name, np.array([float(ranks)])) * size
        found = fit_collective({"x": sent, "t": row.to_numpy(np.float64) * 1e-6})
        error = collective_seconds(found.constants, {"x": sent}) / (row.to_numpy() * 1e-6) - 1.0
        start, rate, root = map(float, found.constants)
        print(f"gloo {name:24} {ranks} ranks: {np.abs(error).mean():.0%} on the points fitted")
        written.section(
            f"[[collectives.loopback.{name}]]",
            {
                "degree": int(ranks),
                "start_s": start,
                "bytes_per_s": rate,
                "root_s_per_sqrt_byte": root,
                "source": "torch 2.13 gloo over loopback, 2 cores: collectives_gloo.csv",
                "relative_error": float(np.abs(error).mean()),
            },
        )
    lines = ["# Written by benchmarks/fit_kernels.py from benchmarks/results/collectives_gloo.csv."]
    return lines + written.lines
