"""The word `rehearse` of the command line: options in, one call, print. Imports late."""

from pathlib import Path
from typing import Annotated, Any

import typer

from armillary.spec import SpecError
from armillary.spec.words import parse_assignments

PlanFile = Annotated[Path, typer.Argument(help="A plan, as `armillary plan --out` writes it.")]
MachineName = Annotated[
    str, typer.Option(help="Another machine, or the TOML file of the plan's own.")
]
Rank = Annotated[
    int | None, typer.Option(help="Also build and run the program of this rank on fake devices.")
]
RecipeName = Annotated[
    str, typer.Option(help="The recipe whose program --rank runs; otherwise the plan's.")
]
Samples = Annotated[int, typer.Option(help="Steps with jitter that are sampled; 0 for none.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same numbers.")]
JitterWords = Annotated[
    str, typer.Option(help="Relative spreads: pass=0.01,device=0.02,replica=0.05, or none.")
]
SlowDevice = Annotated[
    list[str] | None, typer.Option(help="A rank that is slower by a factor: 12:1.5. Repeatable.")
]
SlowLink = Annotated[
    list[str] | None,
    typer.Option(help="A node whose links are slower by a factor: 3:2. Repeatable."),
]
Background = Annotated[
    float, typer.Option(help="Mean share of the links between nodes that other jobs take.")
]
Days = Annotated[float, typer.Option(help="Run so many days with failures and checkpoints.")]
Html = Annotated[Path | None, typer.Option(help="A file for the page, such as rehearsal.html.")]
Trace = Annotated[
    Path | None, typer.Option(help="A JSON file of the events for Perfetto or chrome://tracing.")
]
Goal = Annotated[
    Path | None, typer.Option(help="A file of the step in GOAL, which LogGOPSim replays.")
]
Out = Annotated[Path | None, typer.Option(help="A file for the rehearsal as JSON.")]
Flows = Annotated[
    bool,
    typer.Option(help="Route every collective's bytes over the links; else closed forms alone."),
]
Why = Annotated[bool, typer.Option("--why", help="Say what holds the step, and what would help.")]
Options = Annotated[
    list[str] | None, typer.Option("--set", help="An option of the recipe. Repeatable.")
]
Data = Annotated[Path | None, typer.Option(help="Where the recipe's data lie.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


def rehearse(
    plan: PlanFile,
    machine: MachineName = "",
    rank: Rank = None,
    recipe: RecipeName = "",
    samples: Samples = 64,
    seed: Seed = 0,
    jitter: JitterWords = "",
    slow_device: SlowDevice = None,
    slow_link: SlowLink = None,
    background: Background = 0.0,
    days: Days = 0.0,
    html: Html = None,
    trace: Trace = None,
    goal: Goal = None,
    out: Out = None,
    why: Why = False,
    flows: Flows = True,
    options: Options = None,
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Play the whole machine's step of a plan, before it is paid for.

    Every rank's passes in the order of its schedule, streams that overlap, and links that are
    shared; then steps with jitter, and days with failures.

    Examples:

    armillary rehearse plan.json --why

    armillary rehearse plan.json --html rehearsal.html --days 30 --background 0.2

    armillary rehearse plan.json --slow-link 12:2 --jitter pass=0.02,device=0.05 --seed 7

    armillary rehearse plan.json --rank 0 --trace trace.json
    """
    given = dict(locals())
    _check_writable(html, trace, goal, out)
    found, request = _played(plan, given)
    files = _write(found, request, html=html, trace=trace, goal=goal, out=out)
    if as_json:
        typer.echo(found.rehearsal.to_json(), nl=False)
    elif not quiet:
        from armillary.rehearse.telling import print_rehearsal

        print_rehearsal(found.rehearsal, with_why=why)
        for path in files:
            typer.echo(f"wrote {path}")


def _played(plan: Path, given: dict[str, Any]) -> tuple[Any, Any]:
    """The rehearsal that the options ask for, and its request."""
    from armillary.rehearse.request import RehearsalWords, check_rank, rehearsal_request
    from armillary.rehearse.running import Telling, programs_of, run

    given["slow_device"] = tuple(given["slow_device"] or ())
    given["slow_link"] = tuple(given["slow_link"] or ())
    given["changes"] = given["why"] or given["as_json"] or bool(given["html"] or given["out"])
    words = RehearsalWords(**{name: given[name] for name in RehearsalWords.__dataclass_fields__})
    request = rehearsal_request(plan, words)
    rank = given["rank"]
    check_rank(rank, request.plan)
    telling = Telling(quiet=given["quiet"] or given["as_json"])
    programs = None
    if rank is not None:
        options = parse_assignments(given["options"] or [], "--set")
        programs = programs_of(request.plan, rank, given["recipe"], options, given["data"], telling)
    return run(request, programs, telling), request


def _write(
    found: Any,
    request: Any,
    *,
    html: Path | None,
    trace: Path | None,
    goal: Path | None,
    out: Path | None,
) -> list[Path]:
    """Write what was asked for."""
    if html is not None:
        from armillary.rehearse.page import write_page

        write_page(found, request, html)
    if trace is not None:
        from armillary.rehearse.trace import write_trace

        write_trace(found.step, found.played, trace)
    if goal is not None:
        from armillary.rehearse.goal import write_goal

        write_goal(found.step, found.played, goal)
    if out is not None:
        found.rehearsal.write(out)
    return [path for path in (html, trace, goal, out) if path is not None]


def _check_writable(*paths: Path | None) -> None:
    """Refuse files that could not be written, before anything is played."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise SpecError(
                "--html, --trace, --goal or --out",
                f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}",
                "what is written is a file in a folder that is there",
                "make the folder first, or name another file",
            )
