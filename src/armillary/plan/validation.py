"""A validation in words: tables of errors by source, of memory and ranks, and what was skipped."""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from armillary.plan.validate import APART, Compared, Errors, Validation, median

MOST_SKIPPED = 12
"""Reasons for skipping rows that are told, the most frequent first."""
WORST = 8
KINDS = {
    "dense transformers": ("dense-transformer",),
    "experts": ("moe",),
    "others": ("cnn", "rnn", "other", ""),
}


def told(found: Validation) -> str:
    """The lines of `plan --validate`."""
    lines = _of_steps(found) + _of_memory(found) + _of_ranks(found) + _of_skipped(found)
    return "\n".join(lines)


def _of_steps(found: Validation) -> list[str]:
    lines = [f"step time, theirs against ours, rows of quality {found.quality}"]
    lines += _table(found.by_group(lambda c: c.step_error))
    lines += ["", "every source weighted the same"]
    for name, kinds in {"all": (), **KINDS}.items():
        lines.append(_line(name, found.errors(lambda c: c.step_error, kinds)))
    lines += ["", f"the {WORST} rows furthest off"]
    worst = sorted(
        (c for c in found.compared if np.isfinite(c.step_error)),
        key=lambda c: -abs(np.log1p(c.step_error)),
    )
    lines += [
        f"  {c.run.id:<48.48} theirs {c.run.step_s:9.4g} s  ours {c.step_s:9.4g} s  "
        f"{c.step_error:+7.0%}"
        for c in worst[:WORST]
    ]
    return lines


def _of_memory(found: Validation) -> list[str]:
    groups = found.by_group(lambda c: c.memory_error)
    right, number = found.told_rightly
    if not groups and not number:
        return []
    lines = ["", "memory of the fullest rank, theirs against ours", *_table(groups)]
    lines += [_line("all, weighted", found.errors(lambda c: c.memory_error))]
    if number:
        lines.append(f"  said rightly whether it fits: {right} of {number}, {right / number:.1%}")
    return lines


def _of_ranks(found: Validation) -> list[str]:
    ranked = found.ranked
    if not ranked:
        return []
    apart = [r.tau_apart for r in ranked if np.isfinite(r.tau_apart)]
    return [
        "",
        f"ranks: {len(ranked)} sets of layouts of one model on one machine",
        f"  regret of our first choice: median {median(r.regret for r in ranked):.1%}, "
        f"worst {max(r.regret for r in ranked):.1%}",
        f"  Kendall's tau: median {median(r.tau for r in ranked):.2f}; of pairs measured more than "
        f"{APART:.0%} apart: median {median(apart):.2f}, of {len(apart)} sets",
        *_of_scatter(found),
    ]


def _of_scatter(found: Validation) -> list[str]:
    """What the runs themselves leave open: those that the table does not tell apart."""
    scatter = found.scatter
    if not scatter.num_pairs:
        return ["  no two runs are the same to a plan, so that how they scatter is not known"]
    most = median(r.tau_most for r in found.ranked)
    return [
        f"  runs that are the same to a plan differ by {scatter.median:.1%} in the middle, nine in "
        f"ten of {scatter.num_pairs} pairs within {scatter.ninetieth:.0%}:",
        f"  a plan without error would reach a tau of {most:.2f} in the middle",
    ]


def _of_skipped(found: Validation) -> list[str]:
    if not found.skipped:
        return ["", "no row was skipped"]
    reasons = Counter(one.why for one in found.skipped)
    named = {why: one.id for one in reversed(found.skipped) for why in (one.why,)}
    lines = ["", f"skipped: {len(found.skipped)} rows"]
    for why, number in reasons.most_common(MOST_SKIPPED):
        others = f" and {number - 1} more" if number > 1 else ""
        lines.append(f"  {named[why]}{others}: {why}")
    if len(reasons) > MOST_SKIPPED:
        lines.append(f"  ... and {len(reasons) - MOST_SKIPPED} other reasons; --json names all")
    return lines


def _table(groups: Mapping[tuple[str, str], Errors]) -> list[str]:
    return [_line(f"{source} {kind}", errors) for (source, kind), errors in groups.items()]


def _line(name: str, errors: Errors) -> str:
    if not errors.num_rows:
        return f"  {name:<36.36} no rows"
    return (
        f"  {name:<36.36} {errors.num_rows:5d} rows  median {errors.median:6.1%}  "
        f"p90 {errors.ninetieth:7.1%}  mean {errors.mean:7.1%}  bias {errors.bias:+7.1%}"
    )


Value = Callable[[Compared], float]
