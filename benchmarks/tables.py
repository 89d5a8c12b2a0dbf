"""The results as a page of tables."""

from typing import Any


def page(results: dict[str, Any]) -> str:
    """The results in Markdown, with the machine and its load named."""
    parts = ["# Benchmark results", ""]
    for name, tables in (("loops", _loops), ("startup", _startup), ("checkpoints", _checkpoints)):
        if name in results:
            heading, *rest = tables(results[name])
            parts += [heading, "", _taken(results["taken"][name]), *rest]
    return "\n".join(parts).rstrip() + "\n"


def _taken(machine: dict[str, Any]) -> str:
    return (
        f"Taken {machine['date']} on {machine['processor']}, {machine['num_cores']} cores, load "
        f"{machine['load_before']:.1f} before and {machine['load_after']:.1f} after; torch "
        f"{machine['torch']}, accelerate {machine['accelerate']}, lightning-fabric "
        f"{machine['lightning_fabric']}: `{machine['command']}`"
    )


def _interval(found: dict[str, float], digits: int = 3) -> str:
    return f"{found['median']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def _loops(rows: list[dict[str, Any]]) -> list[str]:
    parts = [
        "## Seconds a step: ours / theirs",
        "",
        "Median over pairs of blocks taken in turn, 95 % bootstrap interval. "
        "CPU time is that of rank 0's process on all its threads. `line` has no work in it: there "
        "only the milliseconds matter.",
        "",
        "| case | layout | against | CPU time | wall time | ours, CPU ms | ours − theirs, CPU ms "
        "| pairs | losses agree to |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name, ratio in row["ratio"].items():
            parts.append(
                f"| {row['case']} | {row['layout']} | {name} | {_interval(ratio['cpu'])} | "
                f"{_interval(ratio['wall'])} | {row['step_s']['armillary']['cpu'] * 1e3:.2f} | "
                f"{row['extra_s'][name] * 1e3:+.2f} | {ratio['cpu']['num_pairs']} | "
                f"{row['largest_loss_difference'][name]:.0e} |"
            )
    return [*parts, "", "![ratios](loops.svg)", "", *_losses(rows)]


def _losses(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0]["last_loss"])
    parts = [
        "Last loss of each contender, after the same number of steps:",
        "",
        f"| case | layout | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for row in rows:
        shown = " | ".join(
            f"{row['last_loss'][name]:.6g}" if name in row["last_loss"] else "" for name in names
        )
        parts.append(f"| {row['case']} | {row['layout']} | {shown} |")
    return [*parts, ""]


def _startup(found: dict[str, Any]) -> list[str]:
    parts = ["## Start-up", "", "| | seconds, median | best |", "|---|---|---|"]
    parts += [
        f"| {name} | {_interval(taken, 2)} | {found['best_s'][name]:.2f} |"
        for name, taken in found["seconds"].items()
    ]
    parts += [
        "",
        "For `import torch` until it is imported, for the loops until the first step "
        "is done, otherwise until the process has ended.",
        "",
    ]
    parts += [
        f"First step beyond `import torch`, {name}: {_interval(taken, 2)} s. "
        for name, taken in found["first_step_beyond_import_torch_s"].items()
    ]
    torch_word = "imports" if found["help_imports_torch"] else "does not import"
    return [*parts, "", f"`armillary --help` {torch_word} torch.", ""]


def _checkpoints(rows: list[dict[str, Any]]) -> list[str]:
    parts = [
        "## Checkpoint hold-up (GPT of 4 x 256, model and AdamW)",
        "",
        "| layout | saver | held up, ms | steps after it, ms longer | our hold-up / theirs |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        for name, taken in row["saves"].items():
            ratio = _interval(row["ratio"][name], 2) if name in row["ratio"] else ""
            parts.append(
                f"| {row['layout']} | {name} | {taken['held_s'] * 1e3:.1f} | "
                f"{taken['slowed_s'] * 1e3:+.1f} | {ratio} |"
            )
    parts += [
        "",
        *(
            f"{row['layout']}: ours holds training up for {_interval(row['held_steps'], 2)} steps. "
            for row in rows
        ),
        "",
    ]
    return parts
