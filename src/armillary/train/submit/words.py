"""The words `submit`, `status` and `logs`: options in, one call, print; imports are late."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.spec.words import parse_assignments

Recipe = Annotated[str, typer.Argument(help="A Python file, or a built-in recipe.")]
SiteWord = Annotated[str, typer.Option(help="aurora, alps, ..., or a TOML file of your own.")]
Nodes = Annotated[int, typer.Option(help="Nodes of the job.")]
Time = Annotated[str, typer.Option(help="How long it may run: 6h, 90min, 06:00:00.")]
LayoutWords = Annotated[
    str, typer.Option(help="As `train` takes it; otherwise data=<all ranks of the job>.")
]
PlanPath = Annotated[Path | None, typer.Option("--plan", help="A plan, as `plan --out` writes.")]
Account = Annotated[str, typer.Option(help="The project that is charged.")]
Queue = Annotated[str, typer.Option(help="Queue or partition; otherwise the site's for that size.")]
Container = Annotated[str, typer.Option(help="The container that the ranks run in.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="An option of the site. Repeatable.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="As `train` takes it. Repeatable.")
]
DataPath = Annotated[Path | None, typer.Option(help="Where the recipe's data lie at the site.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, xpu or mps.")]
Jobs = Annotated[Path, typer.Option(help="Where job folders are made.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the script; submit nothing.")]
Target = Annotated[
    Path | None, typer.Argument(help="A job's or a run's folder; otherwise the newest job.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


def submit(
    recipe: Recipe,
    site: SiteWord = "",
    nodes: Nodes = 1,
    time: Time = "",
    layout: LayoutWords = "",
    plan: PlanPath = None,
    account: Account = "",
    queue: Queue = "",
    container: Container = "",
    option: Options = None,
    assign: Assignments = None,
    data: DataPath = None,
    device: Device = "auto",
    jobs: Jobs = Path("jobs"),
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write the job script that a site's expert would, and submit it.

    Examples:

    armillary submit my_case.py --site alps --nodes 16 --time 6h --account g123 --dry-run

    armillary submit gpt --site aurora --nodes 256 --time 6h --account mine --plan plan.json
    """
    from armillary.train.submit.job import JobWords
    from armillary.train.submit.submitting import submit as run

    words = JobWords(
        recipe=recipe,
        site=site,
        nodes=nodes,
        time=time,
        layout=layout,
        plan=plan,
        account=account,
        queue=queue,
        container=container,
        options=parse_assignments(option or [], "--option"),
        always=("--device", device) if device != "auto" else (),
        train=tuple(f"--set={one}" for one in assign or ()) + ((f"--data={data}",) if data else ()),
        jobs=jobs,
    )
    job, folder, script = run(words, parse_assignments(assign or [], "--set"), dry_run=dry_run)
    if as_json:
        _print_json(job.to_dict() | {"folder": str(folder) if folder else None, "script": script})
    elif folder is None:
        typer.echo(script, nl=False)
    else:
        if job.advice:
            typer.echo(job.advice, err=True)
        typer.echo(f"job {job.number} of {job.ranks:,} ranks at {job.site}: {folder}")
        typer.echo(f"armillary status {folder}\narmillary logs -f {folder}")


def status(target: Target = None, jobs: Jobs = Path("jobs"), as_json: Json = False) -> None:
    """Say what has become of a job or a run, and how far it is.

    Example: armillary status jobs/weather-20260101-120000
    """
    from armillary.train.submit.following import find
    from armillary.train.submit.following import status as status_of

    found = status_of(find(target, jobs))
    if as_json:
        _print_json(found)
        return
    run = found.pop("run", None)
    for name, value in {**found, **(run or {})}.items():
        if value not in (None, ""):
            shown = f"{value:.6g}" if isinstance(value, float) else value
            typer.echo(f"{name.replace('_', ' '):12} {shown}")
    if run is None:
        typer.echo("no run yet")


def logs(
    target: Target = None,
    follow: Follow = False,
    jobs: Jobs = Path("jobs"),
    as_json: Json = False,
) -> None:
    """Print what a job's ranks print, or the metrics of a run; -f goes on until its end.

    Example: armillary logs -f jobs/weather-20260101-120000
    """
    from armillary.train.submit.following import find, log_lines, log_path

    folder = find(target, jobs)
    lines = log_lines(folder, follow=follow)
    if as_json:
        _print_json({"log": str(log_path(folder)), "lines": list(lines)})
        return
    for line in lines:
        typer.echo(line)


def _print_json(values: Any) -> None:
    typer.echo(json.dumps(values, indent=2, default=str))
