"""Predictions of a trained run on other data, as a table on disk."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from armillary.spec import Layout, SpecError
from armillary.step.precision import Precision
from armillary.step.world import World, pick_device
from armillary.train.checkpoints.saved import best_step, checkpoint_path, find_fault, newest_whole
from armillary.train.checkpoints.state import restore_model
from armillary.train.evaluate import Evaluator
from armillary.train.folder.run_folder import RunFolder
from armillary.train.request import resumed_request

FORMATS = (".parquet", ".csv", ".npz")


def predict(run: Path, data: Path, out: Path, *, device: str = "auto") -> dict[str, Any]:
    """Write the predictions of the best checkpoint of `run` on `data` to `out`; what was written.

    The recipe reads `data` with `read(path)` and lays its predictions out as columns with
    `rows(predictions, dataset)`. `out` ends in .parquet, .csv or .npz.

    Raises: `SpecError` if the recipe has no such functions, the data or run cannot be read, or the
    format is unknown.
    """
    if out.suffix not in FORMATS:
        raise SpecError(
            "--out", out.name, f"a table is one of {', '.join(FORMATS)}", f"use {out.stem}.parquet"
        )
    request = resumed_request(run)
    recipe = request.load_recipe()
    for name in ("read", "rows", "predict"):
        if recipe.find(name) is None:
            raise SpecError(
                f"{recipe.name}.{name}",
                "missing",
                "predicting needs predict(model, batch), read(path) and rows(predictions, dataset)",
                f"add `def {name}(...)` to the recipe",
            )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        dataset = recipe.module.read(str(data))
    chosen = pick_device(0, device)
    world = World(rank=0, num_ranks=1, device=chosen, mesh=None, batch_index=0, batch_count=1)
    precision = Precision(Layout(precision=request.layout.precision), chosen)
    model = recipe.model().to(device=chosen, dtype=precision.dtype)
    step, passed_over = _choose_checkpoint(RunFolder.open(run).checkpoints)
    restore_model(model, checkpoint_path(run / "checkpoints", step), serial=True)
    evaluator = Evaluator(recipe, dataset, world, precision, request.settings.global_batch_size)
    columns = recipe.module.rows(evaluator.predict(model), dataset)
    _write_table(columns, out)
    return {
        "run": str(run),
        "step": step,
        "out": str(out),
        "passed_over": passed_over,
        "warnings": [str(one.message) for one in warned],
        "num_rows": len(next(iter(columns.values()))),
        "columns": list(columns),
    }


def _choose_checkpoint(folder: Path) -> tuple[int, list[str]]:
    """The best checkpoint if it is whole, the newest whole one otherwise."""
    best = best_step(folder)
    if best is not None and find_fault(checkpoint_path(folder, best)) is None:
        return best, []
    step, passed_over = newest_whole(folder)
    return step, [*passed_over, f"the best checkpoint is damaged or missing; used step {step}"]


def _write_table(columns: dict[str, np.ndarray], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        np.savez_compressed(out, **columns)  # type: ignore[arg-type]
        return
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise SpecError(
            "--out",
            f"{out.suffix} needs the package pyarrow",
            "Parquet and CSV are written by pyarrow",
            "pip install 'armillary[fusion]', or use .npz",
        ) from None
    table = pyarrow.table({name: np.asarray(values) for name, values in columns.items()})
    if out.suffix == ".csv":
        pyarrow.csv.write_csv(table, out)
    else:
        pyarrow.parquet.write_table(table, out)
