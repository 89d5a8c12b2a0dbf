"""Every tensor of the parallel program beside the serial one's: how far off, and like what."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.spec import Layout
from armillary.verify.program import Tensors, Trace

TOLERANCE = 1e-9
"""Largest relative difference that counts as equal, in float64.

A step sums thousands of products in another order, which leaves 1e-15 to 1e-12; the mildest real
fault known, a wrong order of two halves of a batch, leaves 1e-3.
"""
LEAST_SHARE = 0.01
"""A tensor is measured by at least this share of the model's largest entry.

Gradients that are zero by symmetry, such as an attention's key bias or a convolution's bias before
batch norm, hold nothing but rounding, and would otherwise look wrong.
"""
PATTERN_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far one tensor is from the serial one's, relative, and what the error looks like.

    `kind` is loss, norm, gradient, parameter or buffer; `rank` is the rank whose copy is worst.
    """

    kind: str
    name: str
    difference: float
    rank: int
    pattern: str = ""


def compare(traces: Sequence[Trace], serial: Trace, layout: Layout) -> list[Difference]:
    """All tensors of all ranks against the serial program's, the worst first.

    A tensor that no rank holds counts as infinitely far off.
    """
    found = [
        *_numbers("loss", [t.losses for t in traces], serial.losses),
        *_numbers("norm", [t.norms for t in traces], serial.norms),
    ]
    for kind, field in (
        ("gradient", "gradients"),
        ("parameter", "parameters"),
        ("buffer", "buffers"),
    ):
        ours, theirs = [getattr(t, field) for t in traces], getattr(serial, field)
        found += _tensors(kind, ours, theirs, set(layout.degrees.values()) | {layout.num_ranks})
    return sorted(found, key=lambda d: (-_sortable(d.difference), KINDS.index(d.kind)))


KINDS = ("gradient", "loss", "norm", "buffer", "parameter")


def _sortable(value: float) -> float:
    return np.inf if np.isnan(value) else value


def _numbers(
    kind: str, ours: Sequence[Sequence[float]], theirs: Sequence[float]
) -> Iterable[Difference]:
    for step, value in enumerate(theirs):
        for rank, numbers in enumerate(ours):
            off = _relative(np.array(numbers[step]), np.array(value), 0.0)
            yield Difference(
                kind=kind,
                name=f"step {step + 1}",
                difference=off,
                rank=rank,
                pattern=_pattern(np.array([numbers[step]]), np.array([value]), set())
                if off > TOLERANCE
                else "",
            )


def _tensors(
    kind: str, ours: Sequence[Tensors], theirs: Tensors, degrees: set[int]
) -> Iterable[Difference]:
    least = LEAST_SHARE * max((float(np.abs(t).max(initial=0)) for t in theirs.values()), default=0)
    for name, tensor in theirs.items():
        copies = {rank: held[name] for rank, held in enumerate(ours) if name in held}
        if not copies:
            yield Difference(kind=kind, name=name, difference=np.inf, rank=0, pattern="missing")
            continue
        off = {rank: _relative(copy, tensor, least) for rank, copy in copies.items()}
        worst = max(off, key=lambda rank: _sortable(off[rank]))
        pattern = ""
        if not off[worst] <= TOLERANCE:
            pattern = _disagreement(copies, least) or _pattern(copies[worst], tensor, degrees)
        yield Difference(kind=kind, name=name, difference=off[worst], rank=worst, pattern=pattern)


def _relative(ours: NDArray[Any], theirs: NDArray[Any], least: float) -> float:
    """The largest difference of an entry over the tensor's largest entry, or over `least`."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.size:
        return 0.0
    scale = max(float(np.abs(theirs).max()), least, 1e-300)
    return float(np.abs(ours - theirs).max() / scale)


def _disagreement(copies: Mapping[int, NDArray[Any]], least: float) -> str:
    """Whether ranks that should hold the same hold different things."""
    first, *others = copies.values()
    if all(_relative(other, first, least) <= TOLERANCE for other in others):
        return ""
    return "the ranks' copies differ: not reduced over all of them, or other data or seeds"


def _pattern(ours: NDArray[Any], theirs: NDArray[Any], degrees: set[int]) -> str:
    """What the error of a tensor that all ranks agree on looks like."""
    if ours.shape != theirs.shape:
        return f"shape {ours.shape} for {theirs.shape}"
    if not np.isfinite(ours).all():
        return "not finite"
    if not np.abs(ours).max(initial=0):
        return "zero: the contribution is lost"
    size = float(np.abs(theirs).max()) or 1.0
    factor = float((ours * theirs).sum() / max(float((theirs * theirs).sum()), 1e-300))
    if np.abs(ours - factor * theirs).max() <= PATTERN_TOLERANCE * size * max(abs(factor), 1):
        return _name_factor(factor, degrees)
    if np.abs(np.sort(ours, axis=None) - np.sort(theirs, axis=None)).max() <= (
        PATTERN_TOLERANCE * size
    ):
        return "the right entries in another order: a permuted shard"
    wrong = np.abs(ours - theirs) > PATTERN_TOLERANCE * size
    share = float(wrong.mean())
    if share < 0.9:
        return f"{share:.0%} of the entries are wrong: one shard of it"
    return "no multiple of the right one: a partial sum is missing or counted twice"


def _name_factor(factor: float, degrees: set[int]) -> str:
    for degree in sorted(degrees - {1}):
        for power in (1, 2):
            for value, word in (
                (float(degree) ** power, f"{degree**power}"),
                (float(degree) ** -power, f"1/{degree**power}"),
            ):
                if abs(factor / value - 1) <= 1e-5:
                    return f"{word} times the right one: a factor of the degree"
    return f"{factor:.6g} times the right one"
