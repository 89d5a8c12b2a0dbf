"""Words of the command line about what a run has saved."""

import json
from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    to: Annotated[Path, typer.Option(help="A .safetensors file, or .pt for a state_dict.")],
    step: Annotated[
        int | None, typer.Option(help="The checkpoint after so many steps; else the best.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, for programs.")
    ] = False,
) -> None:
    """Write the model of a run's checkpoint as one file, whatever layout trained it.

    No recipe is run for it. `armillary train --weights FILE` begins from such a file.

    Example: armillary export runs/weather-20260101-120000 --to weather.safetensors
    """
    from armillary.train.checkpoints.weights import export as write

    written = write(run, to, step=step)
    if as_json:
        typer.echo(json.dumps(written, indent=2))
        return
    typer.echo(
        f"{written['tensors']:,} tensors, {written['bytes']:,} bytes, after step "
        f"{written['step']} -> {written['to']}"
    )
