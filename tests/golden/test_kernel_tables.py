"""Do the constants of `machines/data/fits` meet the tables they come from, and points kept out?

A sample of the tables lies in `benchmarks/results`, with its licence.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from armillary import networks
from armillary.spec.machine import CollectiveFit, Efficiency
from benchmarks.fit_collectives import OPERATIONS, collective_points, fit_collective
from benchmarks.fit_kernels import matmul_form
from tests.contract import small_machines as small

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
FITS = files("armillary.machines") / "data/fits"
PEAK, RATE = {"a100_sxm": 312e12, "h100_sxm": 989e12}, {"a100_sxm": 2.039e12, "h100_sxm": 3.35e12}
LINK = {"a100_sxm": 3e11, "h100_sxm": 4.5e11}
DEVICES = sorted(PEAK)


def fits_of(name: str) -> dict[str, Any]:
    """The tables of one file of fits."""
    return tomllib.loads((FITS / f"{name}.toml").read_text())


def sample(name: str, device: str) -> pd.DataFrame:
    """The rows of one device."""
    table = pd.read_csv(RESULTS / f"{name}.csv", comment="#")
    return table[table.device == device]


@pytest.mark.parametrize("name", sorted(p.name[:-5] for p in FITS.iterdir() if "toml" in p.name))
def test_every_file_reads_as_the_documents_say(name: str) -> None:
    tables = fits_of(name)
    found = [Efficiency.from_dict(defaults() | one) for one in efficiencies(tables)]
    for network, collectives in tables["collectives"].items():
        assert network in networks.discover()
        for collective, fits in collectives.items():
            assert collective in OPERATIONS.values()
            found += [CollectiveFit.from_dict(one) for one in fits]
            degrees = [one["degree"] for one in fits]
            assert degrees == sorted(set(degrees))
    assert all(one.source and one.relative_error > 0 for one in found)


def defaults() -> dict[str, float]:
    """What a file of fits may leave out."""
    return {"attention_fraction": 0.5, "stream_fraction": 0.8, "launch_s": 5e-6}


def efficiencies(tables: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of all dtypes."""
    return [*filter(None, [tables.get("efficiency")]), *tables.get("efficiencies", {}).values()]


@pytest.mark.parametrize(("device", "at_most"), [("a100_sxm", 0.085), ("h100_sxm", 0.055)])
def test_large_products(device: str, at_most: float) -> None:
    rows = sample("kernels_matmul", device)
    told = fits_of(device)["efficiency"]
    names = ("matmul_start_s", "matmul_fraction", "matmul_memory_fraction")
    constants = [told[name] for name in (*names, "half_rows", "half_columns", "half_inner")]
    points = {name: rows[name].to_numpy(float) for name in ("m", "n", "k")}
    predicted = matmul_form(PEAK[device], RATE[device], 2.0)(np.array(constants), points)
    error = np.abs(predicted / (rows.latency.to_numpy() * 1e-3) - 1)
    assert error.mean() <= at_most
    assert told["relative_error"] <= at_most


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
@pytest.mark.parametrize("device", DEVICES)
def test_nccl_as_planned_against_a_run_that_was_not_fitted(device: str, operation: str) -> None:
    """The rows of int8 were timed apart and fitted by nobody."""
    told = fits_of(device)["collectives"]["switch"][OPERATIONS[operation]]
    fits = [CollectiveFit.from_dict(one) for one in told]
    node = small.fitted({OPERATIONS[operation]: fits}, rate=LINK[device])
    errors = []
    for ranks in (2, 4, 8):
        rows = sample("kernels_nccl", device)
        rows = rows[(rows.op_name == operation) & (rows.nccl_dtype == "int8")]
        rows = rows[rows.num_gpus == ranks]
        size = rows.message_size.to_numpy(float) * (ranks if operation == "alltoall" else 1)
        predicted = networks.seconds(node, OPERATIONS[operation], size, [(ranks, 1)])
        errors.append(np.abs(predicted / (rows.latency.to_numpy() * 1e-3) - 1))
    assert np.concatenate(errors).mean() <= (0.13 if operation == "alltoall" else 0.075)


@pytest.mark.parametrize("device", DEVICES)
def test_nccl_from_a_quarter_of_its_sizes(device: str) -> None:
    table = sample("kernels_nccl", device)
    errors = [
        fit_collective(
            *(collective_points(table, operation, ranks, dtype) for dtype in ("half", "int8"))
        ).held_out_error
        for operation in ("all_reduce", "all_gather", "reduce_scatter")
        for ranks in (2, 4, 8)
    ]
    assert np.mean(errors) <= 0.08
