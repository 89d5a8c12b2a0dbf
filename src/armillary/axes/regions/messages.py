"""What the tensor axis sends: at the edges of its regions, and for gradients held in part."""

from collections.abc import Iterator
from functools import reduce
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes.batch.times import num_reductions
from armillary.spec import ModelGraph, Split
from armillary.spec.layouts import Layouts

Column = NDArray[np.float64]
Message = tuple[str, str, Column, Column, str]
WORDS = ("vocabulary", "head")
STAYS_WHOLE = ("summed", "ending", "tokens")
TENSOR = "tensor"


def common_units(graph: ModelGraph) -> int:
    """The largest degree that divides the units of every region; words do not count."""
    return reduce(
        gcd, (s.num_units for s in graph.splits if s.kind not in (*WORDS, *STAYS_WHOLE)), 0
    )


def is_cut(split: Split, degrees: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a parameter is cut, for every degree: words that it does not divide stay whole."""
    return (degrees > 1) & (split.num_units % degrees == 0) & (split.kind not in STAYS_WHOLE)


def edges(graph: ModelGraph, layouts: Layouts) -> Iterator[Message]:
    """Path, collective, bytes, times and phase of what crosses an edge, or is exchanged, in a call.

    What a rank holds of the activations is that of its samples and positions.
    """
    share = _activation_share(layouts)
    cuts_norms = layouts.option("tensor.norms", "whole") == "cut"
    keeps_words = layouts.option("tensor.loss", "whole") == "vocabulary"
    for split in graph.splits:
        if split.kind == "tokens":
            size = np.full(layouts.num_layouts, float(split.parameter_bytes))
            times = (layouts.degree(TENSOR) > 1) * cuts_norms * 1.0
            yield split.path, "all_gather_into_tensor", size, times, "backward"
        if split.kind in STAYS_WHOLE:
            continue
        calls = np.where(is_cut(split, layouts.degree(TENSOR)), float(split.num_calls), 0.0)
        size = split.activation_bytes * share
        ends = split.kind in ("row", "vocabulary")
        if split.activation_bytes:
            yield from _edge(split.path, size, calls, ends, cuts_norms)
        if not split.exchanged_bytes:
            continue
        exchanged = split.exchanged_bytes * share
        if split.kind == "head":
            words = float(max(split.num_units, 1))
            yield (
                split.path,
                "all_gather_into_tensor",
                exchanged,
                calls * ~keeps_words,
                "forward",
            )
            for part in (1.0, 2.0):  # the largest logit; the sum of powers, and the target's
                size = part * exchanged / words
                yield split.path, "all_reduce", size, calls * keeps_words, "forward"
            continue
        for phase in ("forward", "backward"):
            yield split.path, "all_to_all_single", exchanged, calls, phase


def _edge(path: str, size: Column, calls: Column, ends: bool, cuts_norms: Any) -> Iterator[Message]:
    """Sums over the ranks, forward where a region ends and backward where it begins; with norms
    cut, half of each, and the other half in the other pass.
    """
    phase, other = ("forward", "backward") if ends else ("backward", "forward")
    yield path, "all_reduce", size, calls * ~cuts_norms, phase
    yield path, "reduce_scatter_tensor", size, calls * cuts_norms, phase
    yield path, "all_gather_into_tensor", size, calls * cuts_norms, other


def _activation_share(layouts: Layouts) -> Column:
    """The samples of one rank in a micro batch, times its share of each."""
    from armillary.axes import discover

    share = layouts.num_samples.astype(np.float64)
    for name, axis in discover().items():
        if axis.splits_batch or name == "sequence":
            share = share / layouts.degree(name)
    return share


def summed_gradients(graph: ModelGraph, layouts: Layouts) -> Iterator[Message]:
    """Gradients of parameters that are whole while what they act on is cut: in one stream a step,
    or by FSDP2 one by one.
    """
    from armillary.axes import discover

    degrees = layouts.degree(TENSOR)
    summed = {s.path: s.parameter_bytes for s in graph.splits if s.kind == "summed"}
    apart = {s.path: s for s in graph.splits if s.kind != "summed" and s.parameter_bytes}
    cuts_norms = layouts.option("tensor.norms", "whole") == "cut"
    is_apart = [is_cut(s, degrees) | (s.kind in STAYS_WHOLE) for s in apart.values()]
    sizes = [
        np.where(there, float(s.parameter_bytes), 0.0)
        for there, s in zip(is_apart, apart.values(), strict=True)
    ]
    size = np.where(cuts_norms, graph.parameter_bytes - sum(sizes), float(sum(summed.values())))
    number = np.where(
        cuts_norms, graph.num_tensors - sum(t.astype(np.float64) for t in is_apart), len(summed)
    )
    by_fsdp = np.zeros(layouts.num_layouts, dtype=bool)
    for name, axis in discover().items():
        by_fsdp |= axis.splits_batch & (layouts.degree(name) > 1)
    stages = layouts.degree("pipeline")
    held = np.where(by_fsdp, number / stages, np.minimum(number, 1.0)) * (degrees > 1)
    times = np.where(by_fsdp, held * num_reductions(layouts), held)
    size = size / stages / np.where(held > 0, held, 1.0)
    yield "", "all_reduce", size, times, "backward"
