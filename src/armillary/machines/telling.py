"""Machines as people read them: a table of all, and one explained number by number."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.tree import Tree

from armillary.machines.catalogue import load, names
from armillary.machines.drawing import svg
from armillary.machines.words import amount, in_unit, level_line, unit_line
from armillary.spec import Level, Machine, SpecError, reason, write_atomically
from armillary.spec.document import Document

# What a dtype's peak is shown in a table: the first that the device has.
SHOWN_PEAKS = ("bfloat16", "float16", "float32", "float64")


def listing() -> list[dict[str, Any]]:
    """One row a machine: name, title, site, devices, peak in flop/s, memory in bytes, network."""
    rows = []
    for machine in map(load, names()):
        dtype = best_dtype(machine)
        rows.append(
            {
                "name": machine.name,
                "title": machine.title,
                "site": machine.site,
                "device": machine.device.title or machine.device.name,
                "num_devices": machine.num_ranks,
                "num_nodes": machine.num_nodes,
                "peak_dtype": dtype,
                "peak_flops_per_s": machine.num_ranks * machine.device.peak(dtype),
                "memory_bytes": machine.num_ranks * machine.device.memory_bytes,
                "networks": [level.network for level in machine.levels],
                "num_unknown": len(machine.unknown),
            }
        )
    return rows


def best_dtype(machine: Machine) -> str:
    """The dtype in which a device's peak is told: the shortest that models are trained in."""
    known = machine.device.peak_flops_per_s
    return next((name for name in SHOWN_PEAKS if known.get(name)), next(iter(known)))


def print_listing() -> None:
    """Print the table of all machines."""
    table = Table(box=None, header_style="bold")
    for column in ("name", "machine", "devices", "each", "peak", "memory", "network"):
        table.add_column(
            column, justify="right" if column in ("devices", "peak", "memory") else "left"
        )
    for row in listing():
        place = f"{row['title']}, {row['site']}" if row["site"] else row["title"]
        table.add_row(
            row["name"],
            escape(place),
            f"{row['num_devices']:,}",
            escape(row["device"]),
            f"{amount(row['peak_flops_per_s'])}flop/s {row['peak_dtype']}",
            f"{amount(row['memory_bytes'])}B",
            " > ".join(row["networks"]) or "none",
        )
    console = Console()
    console.print(table)
    console.print("[dim]armillary machines NAME explains one, with the source of each number")


def print_machine(machine: Machine) -> None:
    """Print one machine: a picture of its levels, each number with its source, what is unknown."""
    console = Console()
    console.print(explanation(machine))


def explanation(machine: Machine) -> RenderableType:
    """One machine as text: its head, its picture, its numbers and what is not known."""
    dtype = best_dtype(machine)
    head = (
        f"[bold]{escape(machine.title or machine.name)}[/]"
        f"{f', {escape(machine.site)}' if machine.site else ''}"
        f"{f' ({escape(machine.status)})' if machine.status else ''}\n"
        f"{machine.num_nodes:,} nodes of {machine.ranks_per_node} x "
        f"{escape(machine.device.title or machine.device.name)}: {machine.num_ranks:,} devices, "
        f"{amount(machine.num_ranks * machine.device.peak(dtype))}flop/s in {dtype}, "
        f"{amount(machine.num_ranks * machine.device.memory_bytes)}B"
    )
    return Group(head, "", picture(machine), "", _numbers(machine), "", _unknown(machine))


def picture(machine: Machine) -> RenderableType:
    """The levels as nested boxes, the machine outermost, its device innermost."""
    device = machine.device
    inner: RenderableType = Panel(
        f"{escape(device.title or device.name)}\n{amount(device.memory_bytes)}B at "
        f"{amount(device.memory_bytes_per_s)}B/s",
        expand=False,
        title="1 device",
        title_align="left",
    )
    below: Level | None = None
    for level in machine.levels:
        link = Tree(level_line(level), guide_style="dim")
        link.add(inner)
        inner = Panel(link, expand=False, title=unit_line(level, below), title_align="left")
        below = level
    return inner


def _numbers(machine: Machine) -> Table:
    table = Table(box=None, header_style="bold", title_justify="left")
    for column in ("number", "value", "source"):
        table.add_column(column, overflow="fold")
    for path, value in numbers(machine):
        source = machine.sources.get(path, "")
        bound = "" if source else "[yellow]bound, see below[/]"
        table.add_row(path, in_unit(path, value), escape(source) or bound)
    for path, source in machine.sources.items():
        if "collectives" in path or "efficienc" in path:
            table.add_row(path, "measured", escape(source))
    return table


def _unknown(machine: Machine) -> Table:
    table = Table(box=None, header_style="bold", show_header=bool(machine.unknown))
    table.add_column("not known", overflow="fold")
    table.add_column("where it could come from, and what stands in its place", overflow="fold")
    for path, sentence in machine.unknown.items():
        table.add_row(path, escape(sentence.removeprefix("not known; it could come from ")))
    return table


def numbers(machine: Machine) -> Iterator[tuple[str, float]]:
    """(path, value) of every number of a machine that is known or bounded, but those of fits."""
    yield from _numbers_of(machine, "")


def _numbers_of(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Document):
        inner: Mapping[str, Any] = {
            name: getattr(value, name)
            for name in value.to_dict()
            if name
            not in ("schema", "sources", "unknown", "efficiency", "efficiencies", "collectives")
        }
    elif isinstance(value, Mapping):
        inner = value
    elif isinstance(value, tuple):
        inner = {level.name: level for level in value}
    else:
        if isinstance(value, (int, float)) and value:
            yield path, value
        return
    for name, entry in inner.items():
        yield from _numbers_of(entry, f"{path}.{name}" if path else name)


def write_picture(machine: Machine, path: Path) -> None:
    """Write the picture of `machine` to `path` as SVG.

    Raises: `SpecError` where the file cannot be written.
    """
    try:
        write_atomically(path, svg(machine))
    except OSError as error:
        raise SpecError(
            "--svg",
            f"{path}: {reason(error)}",
            "the picture is written to a file",
            "name another file",
        ) from None


def refuse_picture_of_all(path: Path | None) -> None:
    """Raise `SpecError` where a picture is asked for and no machine."""
    if path is not None:
        raise SpecError(
            "--svg",
            f"{path}, without a machine",
            "a picture is of one machine",
            "name one: armillary machines aurora --svg aurora.svg",
        )


def refuse_name_beside_template(machine: str) -> None:
    """Raise `SpecError` where a machine is named beside `--template`."""
    if machine:
        raise SpecError(
            "--template",
            f"given beside the machine {machine!r}",
            "the template is one file, whatever the machine",
            "leave the machine out; `like` in the file starts from one of ours",
        )
