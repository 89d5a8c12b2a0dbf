"""A rehearsal on a terminal: the step, where its time goes, how it varies, what holds it."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from armillary.rehearse.comparing import rows, summary
from armillary.spec.quantities import size, span
from armillary.spec.rehearsal import Rehearsal, Share

BAR = 24
MOST_TERMS = 14


def print_rehearsal(
    rehearsal: Rehearsal, *, with_why: bool, console: Console | None = None
) -> None:
    """What a person asks first; with `with_why` also what holds the step."""
    console = console or Console(highlight=False)
    head = Table(
        title=headline(rehearsal),
        title_style="bold",
        title_justify="left",
        box=None,
        show_header=False,
    )
    head.add_column(style="dim", no_wrap=True)
    head.add_column(overflow="fold")
    for topic, words in facts(rehearsal):
        head.add_row(topic, Text(words))
    console.print(head)
    title = "where the time of the busiest rank goes"
    console.print(_table(title, rehearsal.terms, rehearsal.predicted_step_s))
    if rehearsal.record is not None:
        console.print(_memory(rehearsal))
        console.print("\n[bold]the program and the plan")
        console.print(Text(summary(rehearsal)))
        if rehearsal.differences:
            console.print(_differences(rehearsal))
    if with_why:
        console.print("\n[bold]what holds the step")
        for line in rehearsal.why:
            console.print(Text(f"  {line}"), soft_wrap=True)


def headline(rehearsal: Rehearsal) -> str:
    """The rehearsal in one sentence."""
    told = f"{span(rehearsal.predicted_step_s)} a step"
    spread = rehearsal.distribution
    if spread is not None:
        told += (
            f"; with jitter {span(spread.predicted_median_s)} (median), "
            f"{span(spread.predicted_p99_s)} (99 %)"
        )
    return f"{rehearsal.num_devices:,} devices of {rehearsal.machine}: {told}"


def facts(rehearsal: Rehearsal) -> Iterator[tuple[str, str]]:
    """What was played, and what came of it, by topic."""
    yield "layout", str(rehearsal.layout)
    ratio = rehearsal.predicted_step_s / rehearsal.planned_step_s
    yield "the plan", f"{span(rehearsal.planned_step_s)} a step; rehearsed {ratio:.3f} of it"
    micro = f"{rehearsal.num_micro_batches:,} micro batches"
    if rehearsal.num_micro_batches_played < rehearsal.num_micro_batches:
        micro = f"{rehearsal.num_micro_batches_played:,} of {micro}, and the rest like them"
    yield (
        "played",
        f"{rehearsal.num_tasks:,} tasks of {rehearsal.num_played:,} ranks for all "
        f"{rehearsal.num_devices:,}, {micro}, in {span(rehearsal.played_s)}",
    )
    for load in rehearsal.loads:
        if load.busiest >= 0.01:
            yield (
                f"{load.level} links",
                f"busy {100 * load.busiest:.0f} % of the step where they are fullest "
                f"({load.network})",
            )
    spread = rehearsal.distribution
    if spread is not None:
        yield (
            "jitter",
            f"{spread.jitter}: {spread.num_samples:,} steps, "
            f"{span(spread.predicted_least_s)} to {span(spread.predicted_most_s)}",
        )
    yield from _days(rehearsal)


def _days(rehearsal: Rehearsal) -> Iterator[tuple[str, str]]:
    days = rehearsal.endurance
    if days is not None:
        yield (
            "failures",
            f"{days.days:g} days with {days.predicted_failures:.1f} failures on average: "
            f"{100 * days.predicted_goodput:.1f} % of the time in steps that count "
            f"({100 * days.predicted_low:.1f} to {100 * days.predicted_high:.1f} % of 9 in 10 "
            f"runs; Daly's form {100 * days.closed_form:.1f} %), {days.num_steps:,} steps",
        )


def name_of(share: Share) -> str:
    """A part of a step in words."""
    return f"{share.name} ({share.level})" if share.level else share.name


def _table(title: str, shares: Sequence[Share], whole_s: float) -> Table:
    table = Table(box=None, title=f"\n{title}", title_style="bold", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in shares[:MOST_TERMS]:
        part = one.predicted_s / whole_s
        if part < 0.0005:
            continue
        bar = Text("█" * round(part * BAR), style="cyan")
        bar.append(f" {100 * part:.1f} %", style="dim")
        table.add_row(name_of(one), span(one.predicted_s), bar)
    return table


def _memory(rehearsal: Rehearsal) -> Table:
    record = rehearsal.record
    assert record is not None
    title = f"\nmemory of rank {record.rank:,} at its fullest, {record.peak_at}"
    table = Table(box=None, title=title, title_style="bold", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, held in sorted(record.peak.items(), key=lambda one: -one[1]):
        table.add_row(name, size(held))
    table.add_row("[bold]all", f"[bold]{size(record.peak_bytes)}")
    return table


def _differences(rehearsal: Rehearsal) -> Table:
    """What the program has otherwise than the axes tell."""
    table = Table(box=None)
    table.add_column("")
    table.add_column("in")
    for name in ("told", "recorded", ""):
        table.add_column(name, justify="right")
    for row in rows(rehearsal.differences):
        table.add_row(row.kind, row.module, row.planned, row.recorded, row.change)
    return table
