"""Every tensor of the parallel program beside the serial one's: how far off, and like what."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
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

    `kind` is loss, norm, gradient, parameter, buffer or seed; `rank` is the rank whose copy is
    worst. `along` are the axes along which ranks that should hold the same do not.
    """

    kind: str
    name: str
    difference: float
    rank: int
    pattern: str = ""
    along: tuple[str, ...] = ()


def compare(traces: Sequence[Trace], serial: Trace, layout: Layout) -> list[Difference]:
    """All tensors of all ranks against the serial program's, the worst first.

    A tensor that no rank holds counts as infinitely far off.
    """
    losses = list(_numbers("loss", [t.losses for t in traces], serial.losses, layout))
    norms = list(_numbers("norm", [t.norms for t in traces], serial.norms, layout))
    found = [*losses, *_weighed(losses, norms), *_seeds([t.seeds for t in traces], layout)]
    for kind, field in (
        ("gradient", "gradients"),
        ("parameter", "parameters"),
        ("buffer", "buffers"),
    ):
        ours, theirs = [getattr(t, field) for t in traces], getattr(serial, field)
        found += _tensors(kind, ours, theirs, layout)
    return sorted(found, key=lambda d: (-_sortable(d.difference), KINDS.index(d.kind)))


KINDS = ("seed", "gradient", "loss", "norm", "buffer", "parameter")


def _sortable(value: float) -> float:
    return np.inf if np.isnan(value) else value


def _numbers(
    kind: str, ours: Sequence[Sequence[float]], theirs: Sequence[float], layout: Layout
) -> Iterable[Difference]:
    for step, value in enumerate(theirs):
        copies = {rank: np.array([numbers[step]]) for rank, numbers in enumerate(ours)}
        yield _difference(kind, f"step {step + 1}", copies, np.array([value]), 0.0, layout)


def _weighed(losses: Sequence[Difference], norms: Sequence[Difference]) -> Iterable[Difference]:
    """The norms, the last of which is the only one of a step whose parts are uneven.

    If it alone is off while all losses are right, the state was right, and so were even parts.
    """
    are_off = [not norm.difference <= TOLERANCE for norm in norms]
    is_weight = are_off[:-1].count(True) == 0 and are_off[-1:] == [True] and len(norms) > 1
    if not is_weight or not all(loss.difference <= TOLERANCE for loss in losses):
        return norms
    pattern = f"{norms[-1].pattern}, only where parts are uneven: a mean of means"
    return [*norms[:-1], replace(norms[-1], pattern=pattern)]


def _tensors(
    kind: str, ours: Sequence[Tensors], theirs: Tensors, layout: Layout
) -> Iterable[Difference]:
    least = LEAST_SHARE * max((float(np.abs(t).max(initial=0)) for t in theirs.values()), default=0)
    for name, tensor in theirs.items():
        copies = {rank: held[name] for rank, held in enumerate(ours) if name in held}
        if not copies:
            yield Difference(kind=kind, name=name, difference=np.inf, rank=0, pattern="missing")
            continue
        yield _difference(kind, name, copies, tensor, least, layout)


def _difference(
    kind: str,
    name: str,
    copies: Mapping[int, NDArray[Any]],
    right: NDArray[Any],
    least: float,
    layout: Layout,
) -> Difference:
    off = {rank: _relative(copy, right, least) for rank, copy in copies.items()}
    worst = max(off, key=lambda rank: _sortable(off[rank]))
    pattern, along = "", ()
    if not off[worst] <= TOLERANCE:
        along = _disagreement(copies, least, layout)
        pattern = (
            f"the ranks' copies differ along {', '.join(along)}: not reduced over all of them, or "
            "other data or seeds"
            if along
            else _pattern(copies[worst], right, layout)
        )
    return Difference(
        kind=kind, name=name, difference=off[worst], rank=worst, pattern=pattern, along=along
    )


def _relative(ours: NDArray[Any], theirs: NDArray[Any], least: float) -> float:
    """The largest difference of an entry over the tensor's largest entry, or over `least`."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.size:
        return 0.0
    scale = max(float(np.abs(theirs).max()), least, 1e-300)
    return float(np.abs(ours - theirs).max() / scale)


def _disagreement(
    copies: Mapping[int, NDArray[Any]], least: float, layout: Layout
) -> tuple[str, ...]:
    """The axes along which ranks that should hold the same hold different things."""
    places = coordinates(layout)
    found = []
    for i, axis in enumerate(places.axes):
        first: dict[tuple[int, ...], NDArray[Any]] = {}
        for rank, copy in copies.items():
            others = places.of[rank][:i] + places.of[rank][i + 1 :]
            if not _relative(copy, first.setdefault(others, copy), least) <= TOLERANCE:
                found.append(axis)
                break
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Coordinates:
    """The axes of a mesh, outermost first, and the place of every rank along each of them."""

    axes: tuple[str, ...]
    of: tuple[tuple[int, ...], ...]


def coordinates(layout: Layout) -> Coordinates:
    """Where every rank of `layout` stands."""
    degrees = {axis: degree for axis, degree in layout.degrees.items() if degree > 1}
    return Coordinates(tuple(degrees), tuple(np.ndindex(*degrees.values())))


def _seeds(ours: Sequence[Sequence[int]], layout: Layout) -> Iterable[Difference]:
    """Ranks that hold the same samples draw the same random numbers, all others do not.

    What is dropped cannot be compared with a serial run, in which it is other entries; the seeds
    that ranks drew from, micro batch by micro batch, can be compared with each other.
    """
    if not any(ours):
        return
    places, axes = coordinates(layout), discover()
    for i, axis in enumerate(places.axes):
        splits = axes[axis].splits_batch
        seen: dict[tuple[int, ...], list[Sequence[int]]] = {}
        wrong = False
        for rank, seeds in enumerate(ours):
            line = seen.setdefault(places.of[rank][:i] + places.of[rank][i + 1 :], [])
            wrong |= any((seeds == others) == splits for others in line if seeds and others)
            line.append(seeds)
        yield Difference(
            kind="seed",
            name=axis,
            difference=np.inf if wrong else 0.0,
            rank=0,
            pattern=(
                f"seeds are equal along {axis}, where samples differ"
                if splits
                else f"seeds differ along {axis}, where samples are the same"
            )
            if wrong
            else "",
            along=(axis,) if wrong else (),
        )


def _pattern(ours: NDArray[Any], theirs: NDArray[Any], layout: Layout) -> str:
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
        return _name_factor(factor, layout)
    if np.abs(np.sort(ours, axis=None) - np.sort(theirs, axis=None)).max() <= (
        PATTERN_TOLERANCE * size
    ):
        return "the right entries in another order: a permuted shard"
    wrong = np.abs(ours - theirs) > PATTERN_TOLERANCE * size
    share = float(wrong.mean())
    if share < 0.9:
        return f"{share:.0%} of the entries are wrong: one shard of it"
    return "no multiple of the right one: a partial sum is missing or counted twice"


def _name_factor(factor: float, layout: Layout) -> str:
    """Which power of a degree the factor is, if any; a norm is off by roots of what is counted."""
    degrees = {degree for degree in layout.degrees.values() if degree > 1} | {layout.num_ranks}
    for degree in sorted(degrees):
        for power, words in POWERS.items():
            if abs(factor / float(degree) ** power - 1) <= 1e-5:
                return f"{words.format(degree)} times the right one: a factor of the degree"
    return f"{factor:.6g} times the right one"


POWERS = {1: "{}", -1: "1/{}", 2: "{}^2", -2: "1/{}^2", 0.5: "sqrt({})", -0.5: "1/sqrt({})"}
