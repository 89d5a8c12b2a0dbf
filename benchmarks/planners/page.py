"""The comparison as a page of tables."""

from collections.abc import Mapping
from typing import Any


def page(results: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    parts = ["# Planners beside one another", "", _taken(results["taken"]), ""]
    if results["errors"]:
        parts += _errors(results["errors"])
    if results["searches"]:
        parts += _searches(results["searches"])
    return "\n".join(parts).rstrip() + "\n"


def _taken(taken: Mapping[str, Any]) -> str:
    peers = ", ".join(f"{name} {version}" for name, version in taken["versions"].items())
    return (
        f"Written by `python -m benchmarks.planners`, {taken['date']}, {taken['processor']}, "
        f"{taken['num_cores']} cores shared with others (load {taken['load']:.1f}), Python "
        f"{taken['python']}, one thread, CPU time. Peers: {peers or 'none'}."
    )


def _errors(sets: Mapping[str, Any]) -> list[str]:
    parts = [
        "## Error of a step's time",
        "",
        "Absolute relative error in percent, of the runs that a planner has words for. In brackets "
        "ours of the same runs.",
        "",
        "| runs | planner | of them | mean | median | p90 | most | bias | runs/s | memory, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title, planners in sets.items():
        for name, found in planners.items():
            errors, same = found["errors"], found["ours_on_the_same"]
            cells = [
                f"{errors[key]:.1f}" + ("" if name == "armillary" else f" ({same[key]:.1f})")
                for key in ("mean", "median", "p90", "most")
            ]
            told = f"{errors['num_told']}/{errors['num_asked']}"
            if not errors["num_told"]:
                cells = [""] * 4
            parts.append(
                f"| {title} | {name} | {told} | {' | '.join(cells)} | {errors['bias']:+.1f} | "
                f"{found['per_s']:,.0f} | {found['peak_bytes'] / 1e6:.0f} |"
            )
    return [*parts, "", "Why runs were left out:", "", *_left_out(sets), ""]


def _left_out(sets: Mapping[str, Any]) -> list[str]:
    found = []
    for title, planners in sets.items():
        for name, one in planners.items():
            if one["why"]:
                reasons = ", ".join(
                    f"{why} {number}"
                    for why, number in sorted(one["why"].items(), key=lambda item: -item[1])[:6]
                )
                found.append(f"- {title}, {name}: {reasons}")
    return found or ["- none"]


def _searches(searches: Mapping[str, Any]) -> list[str]:
    parts = [
        "## Searches",
        "",
        "Ours prices every layout with its memory and keeps the 100 fastest that fit; it does not "
        "scout. Calculon's are a seeded sample of exactly its own space, so its hours are of the "
        "whole space at the sample's rate.",
        "",
        "| search | planner | layouts | admitted | fit | layouts/s | whole search | memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, planners in searches.items():
        for name, found in planners.items():
            if name == "Calculon":
                parts += _calculon(title, found)
            else:
                parts.append(
                    f"| {title} | armillary, {name} | {found['num_layouts']:,} | "
                    f"{found['num_admitted']:,} | {found['num_fitting']:,} | "
                    f"{found['per_s']:,.0f} | {found['seconds']:.1f} s | "
                    f"{found['peak_bytes'] / 1e6:.0f} |"
                )
    return [*parts, "", *_columns(searches)]


def _calculon(title: str, found: Mapping[str, Any]) -> list[str]:
    """As shipped, and with the level of its logger raised."""
    share = found["num_valid"] / found["num_sampled"]
    return [
        f"| {title} | Calculon, {name} | {found['num_layouts']:,} | | {share:.1%} of "
        f"{found['num_sampled']:,} | {found[key]:,.0f} | "
        f"{found['num_layouts'] / found[key] / 3600:.1f} h | {found['peak_bytes'] / 1e6:.0f} |"
        for name, key in (("as shipped", "shipped_per_s"), ("logging off", "quiet_per_s"))
    ]


def _columns(searches: Mapping[str, Any]) -> list[str]:
    """What our grids hold, and what they found."""
    parts = []
    for title, planners in searches.items():
        for name, found in planners.items():
            if "columns" in found:
                most = ", ".join(f"{dim} {n:,}" for dim, n in found["columns"].items() if n > 1)
                step_s, memory, words = found["best"][0]
                parts.append(
                    f"- {title}, {name}. Choices, at most (only where a row has use for them): "
                    f"{most}. Fastest: {step_s:.2f} s, {memory / 1e9:.0f} GB, `{words}`"
                )
    return [*parts, ""]
