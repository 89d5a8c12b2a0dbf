"""The word `plan` of the command line: options in, one call, print. Imports what it needs late."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.spec import SpecError
from armillary.spec.words import parse_assignments

Target = Annotated[
    str,
    typer.Argument(
        help="A recipe, a JSON file of a graph, or a family such as "
        "gpt:layers=24,hidden=2048,heads=16,seq=2048,vocab=51200."
    ),
]
MachineName = Annotated[
    str, typer.Option(help="One of `armillary machines`, or a TOML file; otherwise this one.")
]
Devices = Annotated[
    int | None, typer.Option(help="Devices that there are; otherwise the whole machine.")
]
AtMost = Annotated[int | None, typer.Option(help="Use any number of devices up to this one.")]
Batch = Annotated[
    int | None, typer.Option(help="Samples of one optimiser step; a recipe has its own.")
]
Objective = Annotated[str, typer.Option(help="What is to be small: time, cost, energy or memory.")]
Deadline = Annotated[str, typer.Option(help="The longest it may take: 2d, 36h, 90min.")]
Budget = Annotated[str, typer.Option(help="The most it may cost: 50000usd.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps of the training.")]
Samples = Annotated[int | None, typer.Option(help="Samples of the training.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of the recipe's data.")]
Fix = Annotated[
    str, typer.Option(help="What is settled: tensor=8,recompute=none,micro_batch_size=2.")
]
Why = Annotated[
    list[str] | None, typer.Option(help="Why not this: tensor=16,pipeline=4. Repeatable.")
]
Precision = Annotated[str, typer.Option(help="Precisions to choose from: bfloat16,float32.")]
SoftwareName = Annotated[
    str, typer.Option(help="The program around the model; the files in plan/software.")
]
Wide = Annotated[
    bool, typer.Option("--wide", help="Look at many more layouts, also those of little sense.")
]
LeastEfficiency = Annotated[
    float, typer.Option(help="Share of their best that the sweet spot's devices do at least.")
]
Options = Annotated[
    list[str] | None, typer.Option("--set", help="An option of the recipe. Repeatable.")
]
Data = Annotated[
    Path | None, typer.Option(help="Where the recipe's data lie; otherwise ARMILLARY_DATA.")
]
Out = Annotated[Path | None, typer.Option(help="A file for the plan, which `train --plan` takes.")]
Html = Annotated[Path | None, typer.Option(help="A file for the page, such as plan.html.")]
Top = Annotated[int, typer.Option(help="How many layouts are listed.")]
Validate = Annotated[
    Path | None, typer.Option(help="Compare with the measured runs of this CSV file instead.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


def plan(
    target: Target = "",
    machine: MachineName = "",
    devices: Devices = None,
    at_most: AtMost = None,
    batch: Batch = None,
    objective: Objective = "",
    deadline: Deadline = "",
    budget: Budget = "",
    steps: Steps = None,
    samples: Samples = None,
    epochs: Epochs = None,
    fix: Fix = "",
    why: Why = None,
    precision: Precision = "",
    software: SoftwareName = "armillary",
    wide: Wide = False,
    efficiency: LeastEfficiency = 0.8,
    options: Options = None,
    data: Data = None,
    out: Out = None,
    html: Html = None,
    top: Top = 10,
    validate: Validate = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Choose the layout of a model on a machine before it is paid for, and say why.

    Nothing is run; a family or a stored graph needs no torch.

    Examples:

    armillary plan gpt --out plan.json

    armillary plan gpt:layers=96,hidden=12288,heads=96,seq=2048,vocab=51200 --machine alps
    --devices 1024 --batch 1536 --why tensor=16,pipeline=4 --html plan.html

    armillary plan my_case.py --machine aurora --at-most 512 --deadline 2d --epochs 90
    """
    given = dict(locals())
    if validate is not None:
        _validate(validate, target, as_json=as_json)
        return
    from armillary.plan.request import PlanWords, plan_request

    given["options"] = parse_assignments(options or [], "--set")
    words = PlanWords(**{name: given[name] for name in PlanWords.__dataclass_fields__})
    _check_writable(out, html)
    made = plan_request(target, words, tuple(why or ()), data).make()
    _tell(made, out=out, html=html, top=top, quiet=quiet, as_json=as_json)


def _check_writable(*paths: Path | None) -> None:
    """Refuse files that could not be written, before anything is searched."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise SpecError(
                "--out or --html",
                f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}",
                "a plan and its page are files in a folder that is there",
                "make the folder first, or name another file",
            )


def _tell(
    made: Any, *, out: Path | None, html: Path | None, top: int, quiet: bool, as_json: bool
) -> None:
    """Write the plan where it was asked for, and print it."""
    if out is not None:
        made.write(out)
    if html is not None:
        from armillary.plan.page import write_page

        write_page(made, html)
    if as_json:
        typer.echo(made.to_json(), nl=False)
    elif not quiet:
        from armillary.plan.telling import print_plan

        print_plan(made, num_shown=top)
        for path in (out, html):
            if path is not None:
                typer.echo(f"wrote {path}")


def _validate(runs: Path, target: str, *, as_json: bool) -> None:
    from armillary.plan.validate import validate

    if target:
        raise SpecError(
            "--validate",
            f"given beside the target {target!r}",
            "the runs of the file say which models they are of",
            "leave the target out",
        )
    found = validate(runs)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.table())
