"""The word `doctor`: options in, one call, print; imports are late."""

import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armillary.spec.quantities import size

if TYPE_CHECKING:
    from armillary.train.doctor.allocation import Examination

NOT_WELL = 4
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Launcher = Annotated[
    bool,
    typer.Option("--launcher", help="Examine the allocation; run it on all ranks, behind srun."),
]
MachineName = Annotated[
    str, typer.Option(help="With --launcher: what is measured is compared with this machine.")
]
Runs = Annotated[Path, typer.Option(help="With --launcher: the folder that all nodes should see.")]
Store = Annotated[
    str, typer.Option(help="With --launcher: the store of the data: s3://..., https://...")
]
Device = Annotated[str, typer.Option(help="With --launcher: auto, cpu, cuda, xpu or mps.")]
OF_A_RUN = ("num_ranks", "threads_per_rank", "invocation")
"""What a run's manifest says of its hardware besides; here there is no run."""
SHORT = {"bytes/s": "B/s"}
"""How a unit of the JSON stands behind a prefix."""
TONES = {"good": "green", "doubtful": "yellow", "wrong": "red", "not tried": "dim"}


def doctor(
    launcher: Launcher = False,
    machine: MachineName = "",
    runs: Runs = Path("runs"),
    store: Store = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say what this machine offers to a run, what is missing, and how to get it.

    With --launcher, behind srun, mpiexec or torchrun: whether the ranks have devices, cores, names
    and clocks as they should, whether the fast network is used, and which node is slow; exit code 4
    if something is wrong.

    Example: srun armillary doctor --launcher --machine alps
    """
    if launcher:
        _allocation(machine, runs, store, device, as_json)
        return
    from armillary.train.doctor.here import examine

    found = examine()
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False)
    found["hardware"] = {n: v for n, v in found["hardware"].items() if n not in OF_A_RUN}
    for topic, value in found.items():
        if topic != "missing":
            table.add_row(f"[bold]{topic.replace('_', ' ')}", escape(_in_words(value)))
    for entry in found["missing"]:
        table.add_row("[yellow]missing", f"{entry['name']}: for {entry['for']}; {entry['get']}")
    Console().print(table)


def _allocation(machine: str, runs: Path, store: str, device: str, as_json: bool) -> None:
    from armillary.train.doctor.allocation import Wish, examine_allocation
    from armillary.train.survive.failure import telling_once

    with telling_once():
        found = examine_allocation(Wish(machine=machine, runs=runs, store=store, device=device))
    if found is None:
        return
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, default=str))
    else:
        _print(found)
    if not found.is_well:
        raise typer.Exit(NOT_WELL)


def _print(found: "Examination") -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{found.num_ranks} ranks on {found.num_nodes} node{'s' * (found.num_nodes > 1)}, started "
        f"by {found.launcher}; {found.device}, {found.backend}"
    )
    for check in found.checks:
        state = f"[{TONES[check.state]}]{check.state:9}[/]"
        console.print(f"{state} [bold]{escape(check.name)}[/]: {escape(check.found)}")
        if check.fix:
            console.print(f"{'':9} {escape(check.fix)}")
    console.print("medians, with their 95 % intervals:")
    for name, (unit, median) in found.timings.items():
        low, high = _amount(median.low, unit), _amount(median.high, unit)
        console.print(
            f"{'':9} {name}: {_amount(median.value, unit)} ({low} to {high}; {median.num_samples})"
        )


def _amount(value: float, unit: str) -> str:
    """A number to three digits, with the prefix of thousands that it reads best with."""
    if not isfinite(value):
        return "not known"
    unit = SHORT.get(unit, unit)
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value * 1e6:.3g} µ{unit}" if value < 1e-3 else f"{value * 1e3:.3g} m{unit}"


def _title(name: str) -> str:
    """A field's name to read; that of a variable stays as it is."""
    return name if name.isupper() else name.removesuffix("_bytes").replace("_", " ")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{_title(name)} {size(entry) if name.endswith('_bytes') else _in_words(entry)}"
            for name, entry in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)
