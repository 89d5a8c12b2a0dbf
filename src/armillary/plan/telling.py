"""A plan on a terminal: the choice, where its time and memory go, the others, how it scales."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from textwrap import wrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from armillary.plan.plot import Curve, plot
from armillary.plan.terms import bytes_meaning, meaning
from armillary.spec import Candidate, Layout, Plan, ScalingPoint, Survival, Term, WhyNot
from armillary.spec.plan import LEVELS
from armillary.spec.quantities import count, device_time, energy, short, size, span

LEVEL_STYLES = {"hardware": "cyan", "middleware": "yellow", "algorithm": "magenta"}
MOST_REFUSED = 6
MOST_BOUNDS = 12
BEST, SWEET = "●", "◆"
LEAST_BESIDE, INDENT = 48, 4
"""Columns that a layout needs behind numbers, and how far in it stands where it goes below."""


def print_plan(plan: Plan, *, num_shown: int, console: Console | None = None) -> None:
    """All that the plan says."""
    console = console or Console(highlight=False)
    bar = max(6, min(24, console.width - 84))
    console.print(_head(plan))
    console.print(_terms(plan, bar))
    console.print(_memory(plan, bar))
    _print_others(plan, num_shown, console)
    _print_frontier(plan, console)
    _print_scaling(plan, console)
    for answer in plan.why_not:
        _print_why_not(answer, plan, console)
    _print_account(plan, console)


def headline(plan: Plan) -> str:
    """The plan in one sentence."""
    each_s = plan.global_batch_size / plan.predicted_step_s
    return (
        f"{count(plan.num_parameters)} parameters on {plan.num_devices:,} of {plan.machine}'s "
        f"devices: {span(plan.predicted_step_s)} a step of {plan.global_batch_size:,} samples, "
        f"{short(float(each_s))} samples a second"
    )


def facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """What a person asks first, by topic."""
    yield "layout", spaced(plan.layout)
    idle = plan.num_given - plan.num_devices
    yield "devices", f"{plan.num_devices:,}" + (f", {idle:,} left idle" if idle else "")
    filled = plan.predicted_memory_bytes / plan.memory_limit_bytes
    yield (
        "memory",
        f"{size(plan.predicted_memory_bytes)} of {size(plan.memory_limit_bytes)} a device "
        f"({100 * filled:.0f} %)",
    )
    yield "a step costs", cost_of(plan.best)
    if plan.num_steps:
        hours = plan.predicted_step_s / plan.best.predicted_goodput * plan.num_steps
        whole = f"{span(hours)} for {plan.num_steps:,} steps, {cost_of(plan.best, plan.num_steps)}"
        yield "the training", whole
    if plan.errors:
        yield "errors", errors_in_words(plan.errors)
    if plan.survival is not None and plan.survival.between_failures_s:
        yield "failures", failures_in_words(plan.survival)


def errors_in_words(errors: Mapping[str, float]) -> str:
    """The errors of predictions by what was predicted: each kind once, with all that is known."""
    kinds: dict[str, list[str]] = {}
    for name, error in errors.items():
        kind, _, share = name.partition(", ")
        before = f"{share} within " if share not in ("", "median") else ""
        kinds.setdefault(kind, []).append(f"{before}{100 * error:.1f} %")
    told = "; ".join(f"{kind} {', '.join(values)}" for kind, values in kinds.items())
    return f"of predictions of measured runs, in the middle: {told}"


def failures_in_words(survival: Survival) -> str:
    """How often the job fails, how often it saves, and what is left."""
    left = f"{100 * survival.predicted_goodput:.1f} % of the time goes into steps that count"
    weighs = f"a checkpoint of {size(survival.checkpoint_bytes)}"
    if not survival.predicted_checkpoint_s:
        saves = f"how long {weighs} takes is not known"
    else:
        saves = (
            f"save {weighs} in {span(survival.predicted_checkpoint_s)} every "
            f"{span(survival.interval_s)}, {survival.interval_steps:,} steps"
        )
    return f"one in {span(survival.between_failures_s)} on average; {saves}; {left}"


def cost_of(candidate: Candidate, num_steps: int = 1) -> str:
    """Device time, dollars and energy of so many steps, as far as they are known."""
    parts = [f"{device_time(candidate.predicted_device_hours * num_steps)} of a device"]
    if candidate.predicted_usd:
        parts.append(f"{short(candidate.predicted_usd * num_steps)} dollars")
    if candidate.predicted_energy_j:
        parts.append(energy(candidate.predicted_energy_j * num_steps))
    return ", ".join(parts)


def _head(plan: Plan) -> Table:
    table = Table(
        title=headline(plan), title_style="bold", title_justify="left", box=None, show_header=False
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for topic, words in facts(plan):
        table.add_row(topic, Text(words))
    return table


def spaced(layout: Layout | str) -> str:
    """A layout in words that a line may be broken between; `--layout` takes them so too."""
    return str(layout).replace(",", ", ")


def brief(layout: Layout | str, beside: Layout) -> str:
    """The degrees of a layout, and besides only what it has otherwise than the one `beside` it."""
    own = Layout.parse(layout) if isinstance(layout, str) else layout
    here, there = (dict(word.split("=") for word in words_of(one)) for one in (own, beside))
    said = [f"{name}={value}" for name, value in here.items() if there.get(name) != value]
    left = [n for n in there if n not in here and n not in beside.degrees and "." not in n]
    said += [f"{name}={getattr(Layout(), name)}" for name in left]
    degrees = [f"{axis}={degree}" for axis, degree in own.degrees.items() if degree > 1]
    return ", ".join(dict.fromkeys([*degrees, *said])) or "serial"


def words_of(layout: Layout) -> list[str]:
    """The words of a layout, such as `tensor=4` and `recompute=full`."""
    return [word for word in str(layout).split(",") if "=" in word]


def by_name(terms: Sequence[Term], number: str) -> list[tuple[str, dict[str, float]]]:
    """Each term's number by level, in the order of the terms."""
    found: dict[str, dict[str, float]] = {}
    for term in terms:
        found.setdefault(term.name, {})[term.level] = getattr(term, number)
    return list(found.items())


def _terms(plan: Plan, bar: int) -> Table:
    rows = by_name(plan.terms, "predicted_s")
    return _by_level("where the time goes", rows, plan.predicted_step_s, span, meaning, bar)


def _memory(plan: Plan, bar: int) -> Table:
    rows = by_name(plan.memory, "predicted_bytes")
    whole = plan.predicted_memory_bytes
    return _by_level("where the memory goes", rows, whole, size, bytes_meaning, bar)


def _by_level(
    title: str,
    rows: Sequence[tuple[str, dict[str, float]]],
    whole: float,
    in_words: Callable[[float], str],
    name_of: Callable[[str], str],
    bar: int,
) -> Table:
    """A row a term, a column a level, the share of the whole as a bar."""
    table = Table(box=None, title=f"\n{title}", title_style="bold", title_justify="left")
    table.add_column("")
    for level in LEVELS:
        table.add_column(level, justify="right", style=LEVEL_STYLES[level], no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, parts in rows:
        cells = [in_words(parts[level]) if parts.get(level) else "" for level in LEVELS]
        table.add_row(name_of(name), *cells, _bar(parts, whole, bar))
    totals = [sum(parts.get(level, 0.0) for _, parts in rows) for level in LEVELS]
    table.add_row(
        f"[bold]{in_words(whole)}",
        *(f"{100 * total / whole:.0f} %" if whole else "" for total in totals),
        "",
    )
    return table


def _bar(parts: dict[str, float], whole: float, width: int) -> Text:
    text = Text()
    for level in LEVELS:
        share = parts.get(level, 0.0) / whole if whole else 0.0
        text.append("█" * round(share * width), style=LEVEL_STYLES[level])
    share = sum(parts.values()) / whole if whole else 0.0
    text.append(f" {100 * share:.1f} %" if share >= 0.0005 else " < 0.1 %", style="dim")
    return text


def _print_others(plan: Plan, num_shown: int, console: Console) -> None:
    title = f"ranked by {plan.objective}: degrees, and what else differs from 1"
    told = [plan.best, *plan.runners_up][:num_shown]
    rows = [
        (
            [
                str(place),
                span(one.predicted_step_s),
                f"{one.num_devices:,}",
                size(one.predicted_memory_bytes),
                device_time(one.predicted_device_hours),
                energy(one.predicted_energy_j) if one.predicted_energy_j else "–",
            ],
            spaced(one.layout) if place == 1 else brief(one.layout, plan.layout),
        )
        for place, one in enumerate(told, start=1)
    ]
    heads = ("", "a step", "devices", "memory", "device time", "energy")
    _print_layouts(title, heads, rows, console)


def _print_layouts(
    title: str, heads: Sequence[str], rows: Sequence[tuple[list[str], str]], console: Console
) -> None:
    """Numbers in columns, and a layout behind them, or below where the line is too short."""
    cells = [list(heads), *(numbers for numbers, _ in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in cells]
    inset = 2 + len(lines[0])
    is_beside = console.width - inset >= LEAST_BESIDE
    console.print(f"\n[bold]{title}[/]")
    console.print(f"[bold]{lines[0]}[/]", no_wrap=True)
    for line, (_, layout) in zip(lines[1:], rows, strict=True):
        if is_beside:
            first, *more = wrap(layout, console.width - inset)
            console.print(f"{line}  {first}", markup=False, no_wrap=True)
        else:
            console.print(line, markup=False, no_wrap=True)
            more = wrap(layout, console.width - INDENT)
        margin = inset if is_beside else INDENT
        for words in more:
            console.print(" " * margin + words, style="dim", markup=False, no_wrap=True)


def _print_frontier(plan: Plan, console: Console) -> None:
    sweet = plan.sweet_spot
    if sweet is None or len(plan.frontier) < 2:
        return
    console.print(f"\n[bold]what none beats[/]  {BEST} chosen  {SWEET} sweet spot")
    for title, name, scale in axes_of(plan):
        edge = [one for one in plan.frontier if getattr(one, name) > 0]
        pairs = [(getattr(one, name) * scale, elapsed_s(one)) for one in edge]
        front = lowest(pairs)
        if len(front) < 2:
            continue
        marks = [
            Curve(x=[getattr(one, name) * scale], y=[elapsed_s(one)], mark=mark, style=style)
            for one, mark, style in ((sweet, SWEET, "bold yellow"), (plan.best, BEST, "bold green"))
        ]
        line = Curve(x=[x for x, _ in front], y=[y for _, y in front], style="cyan")
        console.print(plot([line, *marks], x_label=title, y_label="s a step", height=10))
    console.print(
        f"{SWEET} {brief(sweet.layout, plan.layout)}: {span(elapsed_s(sweet))} a step on "
        f"{sweet.num_devices:,} devices, {cost_of(sweet)}",
        markup=False,
    )


def axes_of(plan: Plan) -> Iterator[tuple[str, str, float]]:
    """What the frontier is told against: title, field of a candidate, scale."""
    if plan.best.predicted_usd:
        yield "dollars a step", "predicted_usd", 1.0
    else:
        hours = plan.best.predicted_device_hours
        unit, scale = ("hours", 1.0) if hours >= 1 else ("seconds", 3600.0)
        yield f"device {unit} a step", "predicted_device_hours", scale
    if plan.best.predicted_energy_j:
        in_kwh = plan.best.predicted_energy_j >= 3.6e5
        unit, scale = ("kWh", 1 / 3.6e6) if in_kwh else ("kJ", 1e-3)
        yield f"{unit} a step", "predicted_energy_j", scale
    yield "GiB a device", "predicted_memory_bytes", 1 / 2**30


def elapsed_s(candidate: Candidate) -> float:
    """Seconds of a step with what failures take."""
    return candidate.predicted_step_s / max(candidate.predicted_goodput, 1e-12)


def lowest(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The pairs that no other is below in both, by rising first number."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(pairs):
        if not found or y < found[-1][1]:
            found.append((x, y))
    return found


def _print_scaling(plan: Plan, console: Console) -> None:
    for kind, title in (
        ("strong", f"the same batch of {plan.global_batch_size:,} on more devices"),
        ("weak", "a batch that grows with the devices"),
    ):
        points = [point for point in plan.scaling if point.kind == kind]
        if len(points) > 1:
            _print_points(title, points, plan.layout, console)
            if kind == "strong":
                console.print(_scaling_plot(points))


def _print_points(
    title: str, points: Sequence[ScalingPoint], chosen: Layout, console: Console
) -> None:
    heads = ("devices", "a step", "efficiency", "starts", "slow ranks", "goodput")
    rows = [
        (
            [
                f"{point.num_devices:,}",
                span(point.predicted_step_s),
                f"{100 * point.predicted_efficiency:.0f} %",
                span(point.predicted_latency_s),
                f"+{span(point.predicted_straggler_s)}",
                f"{100 * point.predicted_goodput:.1f} %",
            ],
            brief(point.layout, chosen),
        )
        for point in points
    ]
    _print_layouts(title, heads, rows, console)


def _scaling_plot(points: Sequence[ScalingPoint]) -> Text:
    devices = [float(point.num_devices) for point in points]
    speed = [point.global_batch_size / point.predicted_step_s for point in points]
    each = max(s / d for s, d in zip(speed, devices, strict=True))
    ideal = [each * number for number in devices]
    return plot(
        [
            Curve(x=devices, y=ideal, style="dim"),
            Curve(x=devices, y=speed, style="cyan"),
            Curve(x=devices, y=speed, mark="•", style="cyan"),
        ],
        x_label="devices",
        y_label="samples a second",
        height=9,
    )


def _print_why_not(answer: WhyNot, plan: Plan, console: Console) -> None:
    console.print(f"\n[bold]why not[/] {answer.asked}?")
    console.print(answer.verdict, markup=False)
    for reason in answer.reasons:
        console.print(f"  {reason.where}: {reason.found}", markup=False)
        console.print(f"    rule  {reason.rule}\n    fix   {reason.fix}", markup=False)
    if answer.candidate is None or answer.candidate.layout == plan.layout:
        return
    console.print(f"  its best: {brief(answer.candidate.layout, plan.layout)}", markup=False)
    table = Table(box=None, show_header=False)
    for name, seconds in answer.slower_s.items():
        if abs(seconds) > 1e-3 * plan.predicted_step_s:
            sign = "+" if seconds > 0 else "−"
            table.add_row(f"  {meaning(name)}", f"{sign}{span(abs(seconds))}")
    console.print(table)


def account(plan: Plan) -> str:
    """What was searched, in a sentence."""
    search = plan.search
    rate = search.num_layouts / max(search.search_s, 1e-9)
    return (
        f"{search.num_rows:,} tuples of degrees, {search.num_layouts:,} layouts priced in "
        f"{span(search.search_s)} of one core ({short(rate / 1e6)} million a second): "
        f"{search.num_refused:,} refused, {search.num_not_fitting:,} too large."
    )


def _print_account(plan: Plan, console: Console) -> None:
    console.print(f"\n{account(plan)}", style="dim")
    for reason in plan.refused[:MOST_REFUSED]:
        said = f"  {reason.count:,} refused: {reason.where}: {reason.found}"
        console.print(said, style="dim", markup=False)
    if plan.bounds:
        console.print(f"not known of {plan.machine}, with what stands in its place:", style="dim")
    for name, words in list(plan.bounds.items())[:MOST_BOUNDS]:
        for line in wrap(f"  {name}: {words}", console.width, subsequent_indent=" " * INDENT):
            console.print(Text(line, style="dim"), no_wrap=True)
