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

A step sums thousands of products in another order, which leaves 1e-15 to 1e-12; every fault of
tests/parity/sabotage*.py has to leave more than 1e-3.
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


def compare(
    traces: Sequence[Trace], serial: Trace, layout: Layout, num_micro_batches: int = 1
) -> list[Difference]:
    """All tensors of all ranks against the serial program's, the worst first.

    A tensor that no rank holds counts as infinitely far off.
    """
    lay = Lay(layout, num_micro_batches)
    losses = list(_numbers("loss", [t.losses for t in traces], serial.losses, lay))
    norms = list(_numbers("norm", [t.norms for t in traces], serial.norms, lay))
    found = [*losses, *_weighed(losses, norms), *_seeds([t.seeds for t in traces], lay)]
    for kind, field in (
        ("gradient", "gradients"),
        ("parameter", "parameters"),
        ("buffer", "buffers"),
    ):
        ours, theirs = [getattr(t, field) for t in traces], getattr(serial, field)
        begun = {} if kind == "gradient" else serial.begun
        found += _tensors(kind, ours, theirs, begun, lay)
    return sorted(found, key=lambda d: (-_sortable(d.difference), KINDS.index(d.kind)))


@dataclass(frozen=True, slots=True)
class Lay:
    """How a run lies on its ranks: where each stands, and what there is several of."""

    layout: Layout
    num_micro_batches: int = 1

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of degree above 1, outermost first."""
        return tuple(axis for axis, degree in self.layout.degrees.items() if degree > 1)

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """The place of every rank along each of the axes."""
        return tuple(np.ndindex(*(self.layout.degree(axis) for axis in self.axes)))

    @property
    def degrees(self) -> set[int]:
        """The degrees of axes that there may be: the divisors of the number of ranks."""
        return {d for d in range(2, self.layout.num_ranks + 1) if not self.layout.num_ranks % d}

    @property
    def factors(self) -> dict[float, str]:
        """What something is multiplied by that is counted too often or divided too often."""
        known = [
            (float(degree) ** power, words.format(degree), f"a {what} of the degree")
            for what, powers in (("factor", FACTORS), ("power", POWERS))
            for power, words in powers.items()
            for degree in sorted(self.degrees)
        ]
        if (num := self.num_micro_batches) > 1:
            said = "a factor of the number of micro batches"
            at = len(FACTORS) * len(self.degrees)
            known[at:at] = [(float(num), f"{num}", said), (1 / num, f"1/{num}", said)]
        return {
            value: f"{word} times the right one: {said}" for value, word, said in reversed(known)
        }


FACTORS = {1: "{}", -1: "1/{}"}
POWERS = {0.5: "sqrt({})", -0.5: "1/sqrt({})", 2: "{}^2", -2: "1/{}^2"}
WHY_APART = ": not reduced over all of them, or other data or seeds"
STALE = "what it was before: stale, not updated"
KINDS = ("seed", "gradient", "loss", "norm", "buffer", "parameter")


def _sortable(value: float) -> float:
    return np.inf if np.isnan(value) else value


def _numbers(
    kind: str, ours: Sequence[Sequence[float]], theirs: Sequence[float], lay: Lay
) -> Iterable[Difference]:
    for step, value in enumerate(theirs):
        copies = {rank: np.array([numbers[step]]) for rank, numbers in enumerate(ours)}
        before = np.array([theirs[step - 1]]) if step else None
        yield _difference(kind, f"step {step + 1}", copies, np.array([value]), 0.0, lay, before)


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
    kind: str, ours: Sequence[Tensors], theirs: Tensors, begun: Tensors, lay: Lay
) -> Iterable[Difference]:
    least = LEAST_SHARE * max((float(np.abs(t).max(initial=0)) for t in theirs.values()), default=0)
    for name, tensor in theirs.items():
        copies = {rank: held[name] for rank, held in enumerate(ours) if name in held}
        if not copies:
            yield Difference(kind=kind, name=name, difference=np.inf, rank=0, pattern="missing")
            continue
        yield _difference(kind, name, copies, tensor, least, lay, begun.get(name))


def _difference(
    kind: str,
    name: str,
    copies: Mapping[int, NDArray[Any]],
    right: NDArray[Any],
    least: float,
    lay: Lay,
    before: NDArray[Any] | None = None,
) -> Difference:
    """How far the worst of some ranks' copies is from `right`; `before` is what it was earlier."""
    off = {rank: _relative(copy, right, least) for rank, copy in copies.items()}
    worst = max(off, key=lambda rank: _sortable(off[rank]))
    pattern = ""
    along: tuple[str, ...] = ()
    if not off[worst] <= TOLERANCE:
        if np.isfinite(copies[worst]).all():
            along = _disagreement(copies, least, lay)
        if along:
            pattern = f"the ranks' copies differ along {', '.join(along)}{WHY_APART}"
        elif before is not None and _relative(copies[worst], before, least) <= TOLERANCE:
            pattern = STALE
        else:
            pattern = _pattern(copies[worst], right, lay)
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


def _disagreement(copies: Mapping[int, NDArray[Any]], least: float, lay: Lay) -> tuple[str, ...]:
    """The axes along which ranks that should hold the same hold different things."""
    found = []
    for i, axis in enumerate(lay.axes):
        first: dict[tuple[int, ...], NDArray[Any]] = {}
        for rank, copy in copies.items():
            others = _without(lay.places[rank], i)
            if not _relative(copy, first.setdefault(others, copy), least) <= TOLERANCE:
                found.append(axis)
                break
    return tuple(found)


def _without(place: tuple[int, ...], i: int) -> tuple[int, ...]:
    return place[:i] + place[i + 1 :]


def _seeds(ours: Sequence[Sequence[int]], lay: Lay) -> Iterable[Difference]:
    """Ranks that hold the same samples draw the same random numbers, all others do not.

    What is dropped cannot be compared with a serial run, in which it is other entries; the seeds
    that ranks drew from, micro batch by micro batch, can be compared with each other.
    """
    if not any(ours):
        return
    axes = discover()
    for i, axis in enumerate(lay.axes):
        splits = axes[axis].splits_batch
        seen: dict[tuple[int, ...], list[Sequence[int]]] = {}
        wrong = False
        for rank, seeds in enumerate(ours):
            line = seen.setdefault(_without(lay.places[rank], i), [])
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


def _pattern(ours: NDArray[Any], theirs: NDArray[Any], lay: Lay) -> str:
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
        return _name_factor(factor, lay.factors)
    if np.abs(np.sort(ours, axis=None) - np.sort(theirs, axis=None)).max() <= (
        PATTERN_TOLERANCE * size
    ):
        return "the right entries in another order: a permuted shard"
    return _name_part(np.abs(ours - theirs) > PATTERN_TOLERANCE * size, lay)


def _name_part(wrong: NDArray[Any], lay: Lay) -> str:
    """Which entries are wrong: those of one rank's part, others, or all of them."""
    for dim, length in enumerate(wrong.shape):
        lines = np.flatnonzero(wrong.any(axis=tuple(d for d in range(wrong.ndim) if d != dim)))
        first, last = int(lines[0]), int(lines[-1])
        is_run = last - first + 1 == len(lines) and not first % len(lines)
        if is_run and length / len(lines) in lay.degrees:
            return (
                f"only entries {first} to {last} of {length} along dim {dim}: the part of one rank"
            )
    share = float(wrong.mean())
    if share < 0.9:
        return f"{share:.0%} of the entries are wrong"
    return "no multiple of the right one: a partial sum missing or counted twice, or other samples"


def _name_factor(factor: float, known: Mapping[float, str]) -> str:
    for value, words in known.items():
        if abs(factor / value - 1) <= 1e-5:
            return words
    return f"{factor:.6g} times the right one"
