"""The door: words in, one call, print. Rooms are imported inside the words that need them."""

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from armillary.plan.command import plan as plan_word
from armillary.rehearse.command import rehearse as rehearse_word
from armillary.spec import Layout, Plan, SpecError, closed_to_others, read_plan
from armillary.spec.secrets import withheld
from armillary.spec.words import parse_assignments
from armillary.train.doctor.words import doctor as doctor_word
from armillary.train.submit import words as job_words
from armillary.train.words import export as export_word

BAD_INPUT, CRASHED, NOT_EQUAL = 2, 1, 4

app = typer.Typer(
    name="armillary",
    help="Train one scientific PyTorch model across a whole machine as if it were one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, xpu or mps.")]
RecipeWord = Annotated[str, typer.Argument(help="A Python file, or a built-in recipe.")]
LayoutWords = Annotated[
    str,
    typer.Option(
        help="Degrees of the axes and how a step is cut: data=2,sharded=2,micro_batch_size=8,"
        "precision=bfloat16,recompute=full,compile=true."
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting or an option of the recipe: epochs=5, global_batch_size=64. Repeatable.",
    ),
]
DataPath = Annotated[
    Path | None, typer.Option(help="Where the recipe's data lie; otherwise ARMILLARY_DATA.")
]
RunsPath = Annotated[Path, typer.Option(help="Where run folders are made.")]
RunToResume = Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")]
Trackers = Annotated[
    list[str] | None, typer.Option(help="tensorboard (default), mlflow or wandb. Repeatable.")
]
PlanPath = Annotated[
    Path | None, typer.Option("--plan", help="A plan or layout, as `armillary plan --out` writes.")
]
Weights = Annotated[
    Path | None, typer.Option(help="Begin from these weights: .safetensors, or a .pt state_dict.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


@app.command()
def train(
    recipe: RecipeWord = "",
    layout: LayoutWords = "",
    assign: Assignments = None,
    data: DataPath = None,
    runs: RunsPath = Path("runs"),
    resume: RunToResume = None,
    plan: PlanPath = None,
    weights: Weights = None,
    device: Device = "auto",
    tracker: Trackers = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a recipe: a file of your own, or a built-in one.

    Examples:

    armillary train my_case.py

    armillary train weather --layout data=2 --set epochs=5

    armillary train gpt --plan plan.json

    armillary train --resume runs/weather-20260101-120000 --layout sharded=4
    """
    from armillary.train.start.warm import warm_up
    from armillary.train.survive.failure import telling_once

    quiet = quiet or as_json
    trackers = tuple(tracker or ["tensorboard"])
    with telling_once():
        chosen, planned = _chosen(layout, plan)
        warm_up(chosen.num_ranks if chosen else 1)
        from armillary.train.launch import train as run_training
        from armillary.train.request import new_request, resumed_request

        asked: dict[str, Any] = {
            "layout": chosen,
            "plan": planned,
            "assignments": parse_assignments(assign or [], "--set"),
            "device": device,
            "quiet": quiet,
            "trackers": trackers,
        }
        if resume is not None:
            _refuse_both(recipe or (f"--weights {weights}" if weights else ""))
            request = resumed_request(resume, **asked)
        else:
            request = new_request(recipe, data=data, runs=runs, weights=weights, **asked)
        outcome = run_training(request)
    if outcome.is_writer:
        _conclude(outcome, quiet=quiet, as_json=as_json)
    raise typer.Exit(outcome.exit_code)


def _chosen(words: str, path: Path | None) -> tuple[Layout | None, Plan | None]:
    """The layout in words, or that of a plan's file with the plan if it is a whole one."""
    if words and path is not None:
        raise SpecError(
            "--plan",
            f"given beside the layout {words!r}",
            "a plan holds the layout",
            "leave --layout or --plan out",
        )
    return read_plan(path) if path is not None else (Layout.parse(words) if words else None, None)


def _refuse_both(recipe: str) -> None:
    if recipe:
        raise SpecError(
            "--resume",
            f"given beside {recipe!r}",
            "a run goes on with the recipe and the weights it keeps",
            "leave the recipe out",
        )


def _conclude(outcome: Any, *, quiet: bool, as_json: bool) -> None:
    """Compare with the rivals, write the report, and say how the run ended."""
    from armillary.train.report import write_report

    if outcome.exit_code == 0:
        _compare(outcome.run_path)
    report_path = write_report(outcome.run_path) if _is_run(outcome.run_path) else None
    if as_json:
        _print_json(outcome.to_dict() | {"report": str(report_path) if report_path else None})
        return
    if not quiet:
        print(f"{outcome.message}: {outcome.num_steps} steps, {outcome.run_path}", file=sys.stderr)
        print(f"report {report_path}" if report_path else "")


def _is_run(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def _compare(run: Path) -> None:
    from armillary.audit import compare
    from armillary.train.folder.results import write_results
    from armillary.train.folder.run_folder import RunFolder
    from armillary.train.request import resumed_request

    results = write_results(run, resumed_request(run).load_recipe())
    if results is not None:
        evaluation = compare(results.predictions, results.rivals, results.metrics, results.groups)
        RunFolder(run).write_json("evaluation.json", evaluation)


@app.command()
def verify(
    recipes: Annotated[list[str], typer.Argument(help="Recipes: files of yours, or built in.")],
    layout: Annotated[
        list[str] | None, typer.Option(help="A layout to prove: data=2,tensor=2. Repeatable.")
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="A plan or layout to prove; of more than 8 ranks, its axes at degree 2."),
    ] = None,
    all_up_to: Annotated[
        int,
        typer.Option(
            "--all", help="Prove every axis, pair and (from 8) three on up to so many local ranks."
        ),
    ] = 0,
    assign: Assignments = None,
    data: DataPath = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps that are compared.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="A folder for verify.json and report.html.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="A file that holds the table of what composes.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prove on this machine that the parallel program computes what the serial one does.

    The model is reduced in size, never in structure. Exit code 4 says that a layout is wrong.

    Examples:

    armillary verify my_case.py --layout data=2,tensor=2

    armillary verify gpt moe cnn weather --all 8 --out proof
    """
    from armillary.verify.proof import write_proofs, write_table
    from armillary.verify.proving import Wanted, prove_all
    from armillary.verify.telling import print_proofs

    proofs = prove_all(
        Wanted(recipes, layout or [], plan, all_up_to, parse_assignments(assign or [], "--set")),
        data=data,
        num_steps=steps,
        quiet=quiet or as_json,
    )
    page = write_proofs(proofs, out) if out else None
    if table:
        write_table(proofs, table)
    if as_json:
        _print_json([proof.to_dict() for proof in proofs])
    elif not quiet:
        print_proofs(proofs, with_composition=all_up_to > 0)
        print(f"report {page}" if page else "")
    raise typer.Exit(0 if all(proof.holds for proof in proofs) else NOT_EQUAL)


app.command(name="plan")(plan_word)
app.command(name="rehearse")(rehearse_word)
app.command(name="export")(export_word)
app.command(name="doctor")(doctor_word)
app.command(name="submit")(job_words.submit)
app.command(name="status")(job_words.status)
app.command(name="logs")(job_words.logs)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a trained run.")],
    data: Annotated[Path, typer.Argument(help="Data that the recipe's read() understands.")],
    out: Annotated[Path, typer.Option(help="A .parquet, .csv or .npz file to write.")],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write a trained run's predictions on other data as a table.

    Example: armillary predict runs/fusion-20260101-120000 shots.npz --out scores.parquet
    """
    from armillary.train.predict import predict as write_predictions

    written = write_predictions(run, data, out, device=device)
    if as_json:
        _print_json(written)
        return
    for message in (*written["warnings"], *written["passed_over"]):
        print(message, file=sys.stderr)
    print(f"{written['num_rows']:,} rows of {', '.join(written['columns'])} -> {written['out']}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run, also one that goes on.")],
    as_json: Json = False,
) -> None:
    """Write report.html of a run, or print what it says as JSON.

    Example: armillary report runs/weather-20260101-120000
    """
    from armillary.train.folder.run_folder import RunFolder
    from armillary.train.report import summary, write_report

    RunFolder.open(run)
    path = write_report(run)
    _print_json(summary(run) | {"report": str(path)}) if as_json else print(path)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the built-in recipes."""
    from rich.console import Console
    from rich.table import Table

    from armillary.step.recipe import built_in_recipes

    found = built_in_recipes()
    if as_json:
        _print_json(found)
        return
    table = Table("recipe", "what it does", box=None)
    for name, line in found.items():
        table.add_row(name, line)
    Console().print(table)


@app.command()
def machines(
    machine: Annotated[
        str, typer.Argument(help="A machine's name, or a TOML file of your own; all without it.")
    ] = "",
    svg: Annotated[Path | None, typer.Option(help="A file for a picture of its levels.")] = None,
    template: Annotated[
        bool, typer.Option("--template", help="Print a machine file to start from.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the machines that can be planned for, or explain one: each number with its source.

    Examples:

    armillary machines aurora --svg aurora.svg

    armillary machines --template > ours.toml
    """
    from armillary.machines import load, telling
    from armillary.machines.catalogue import template as template_text

    if template:
        telling.refuse_name_beside_template(machine)
        print(template_text(), end="")
    elif not machine:
        telling.refuse_picture_of_all(svg)
        if as_json:
            _print_json(telling.listing())
        else:
            telling.print_listing()
    else:
        found = load(machine)
        if svg is not None:
            telling.write_picture(found, svg)
        if as_json:
            _print_json(found.to_dict())
        else:
            telling.print_machine(found)


def _print_json(values: Any) -> None:
    print(json.dumps(values, indent=2, default=str))


def _fail(error: Exception, exit_code: int) -> NoReturn:
    """Say what went wrong, as text or, where a program asked for it, as JSON."""
    if "--json" in sys.argv and isinstance(error, SpecError):
        _print_json({"error": {k: withheld(v) for k, v in error.to_dict().items()}})
    else:
        print(withheld(str(error)), file=sys.stderr)
    raise SystemExit(exit_code)


def main() -> None:
    """The command `armillary`; exit codes: 0 done, 1 crashed, 2 bad input, 3 loss not finite,
    4 a layout is not equal to the serial program, 75 interrupted and saved.
    """
    try:
        with closed_to_others():
            app()
    except SpecError as error:
        _fail(error, BAD_INPUT)
    except RuntimeError as error:
        if type(error).__name__ == "ToldElsewhere":
            raise SystemExit(CRASHED) from None
        if type(error).__name__ != "RankError":
            _crash()
        _fail(error, CRASHED)
    except Exception:
        _crash()


def _crash() -> NoReturn:
    """Show the traceback as Python would, but for keys and passwords in it."""
    print(withheld(traceback.format_exc()), end="", file=sys.stderr)
    raise SystemExit(CRASHED)


if __name__ == "__main__":
    main()
