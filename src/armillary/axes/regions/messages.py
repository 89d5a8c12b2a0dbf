"""What the tensor axis sends: at the edges of its regions, and for gradients held in part."""

from collections.abc import Iterator
from functools import reduce
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes.batch.routed import choice_bytes
from armillary.axes.batch.summed import gradient_sums
from armillary.axes.batch.times import rank_samples
from armillary.spec import ModelGraph, Split
from armillary.spec.layouts import Layouts

Column = NDArray[np.float64]
Message = tuple[str, str, Column, Column, str, bool]
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
    """Path, collective, bytes, times and phase of what crosses an edge, or is exchanged, in a call,
    and whether it stays wide under autocast.

    What a rank holds of the activations is that of its samples and positions.
    """
    share = rank_samples(layouts) / layouts.degree("sequence")
    cuts_norms = layouts.option("tensor.norms", "whole") == "cut"
    stay_cut = keeps_words(layouts)
    for split in graph.splits:
        if split.kind == "tokens":
            size = np.full(layouts.num_layouts, float(split.parameter_bytes))
            times = (layouts.degree(TENSOR) > 1) * cuts_norms * 1.0
            yield split.path, "all_gather_into_tensor", size, times, "backward", True
        if split.kind in STAYS_WHOLE:
            continue
        calls = np.where(is_cut(split, layouts.degree(TENSOR)), float(split.num_calls), 0.0)
        size = split.activation_bytes * share
        ends = split.kind in ("row", "vocabulary")
        if split.activation_bytes:
            for message in _edge(split.path, size, calls, ends, cuts_norms):
                yield *message, split.kind == "vocabulary"  # sums of rows as they are stored
        if not split.exchanged_bytes:
            continue
        exchanged = split.exchanged_bytes * share
        if split.kind == "head":
            words = float(max(split.num_units, 1))
            yield (
                split.path,
                "all_gather_into_tensor",
                exchanged,
                calls * ~stay_cut,
                "forward",
                False,
            )
            for part in (1.0, 2.0):  # the largest logit; the sum of powers, and the target's
                size = part * exchanged / words
                yield split.path, "all_reduce", size, calls * stay_cut, "forward", True
            continue
        for phase in ("forward", "backward"):
            yield split.path, "all_to_all_single", exchanged, calls, phase, False
    yield from _of_all_tokens(graph, layouts)


def _of_all_tokens(graph: ModelGraph, layouts: Layouts) -> Iterator[Message]:
    """What is taken of all tokens where norms are cut, and a rank has a part of them."""
    cut = layouts.option("tensor.norms", "whole") == "cut"
    calls, samples = (layouts.degree(TENSOR) > 1) * cut * 1.0, rank_samples(layouts)
    for added in graph.sums:
        if not added.num_groups:
            size = added.sample_bytes * samples
            yield added.path, "all_reduce", size, calls * added.num_calls, "forward", True
    for routed in graph.routed:
        size = choice_bytes(routed) * samples
        times = calls * routed.has_capacity
        yield routed.path, "all_gather_into_tensor", size, times, "forward", True


def keeps_words(layouts: Layouts) -> NDArray[np.bool_]:
    """Where a loss takes logits that are cut by words: if asked to, and on a pipeline's last stage.

    A stage hands its result to the loss before any hook of its module sees it.
    """
    in_pipeline = layouts.degree("pipeline") > 1
    return (layouts.option("tensor.loss", "whole") == "vocabulary") | in_pipeline


def _edge(
    path: str, size: Column, calls: Column, ends: bool, cuts_norms: Any
) -> Iterator[tuple[str, str, Column, Column, str]]:
    """Sums over the ranks, forward where a region ends and backward where it begins; with norms
    cut, half of each, and the other half in the other pass.
    """
    phase, other = ("forward", "backward") if ends else ("backward", "forward")
    yield path, "all_reduce", size, calls * ~cuts_norms, phase
    yield path, "reduce_scatter_tensor", size, calls * cuts_norms, phase
    yield path, "all_gather_into_tensor", size, calls * cuts_norms, other


def summed_gradients(graph: ModelGraph, layouts: Layouts) -> Iterator[Message]:
    """Gradients of parameters that are whole while what they act on is cut: in one stream a step,
    or by FSDP2 one by one.
    """
    degrees = layouts.degree(TENSOR)
    summed = {s.path: s for s in graph.splits if s.kind == "summed"}
    num_summed = sum(graph.times(path) for path in summed)
    summed_bytes = sum(float(s.parameter_bytes * graph.times(path)) for path, s in summed.items())
    apart = {s.path: s for s in graph.splits if s.kind != "summed" and s.parameter_bytes}
    cuts_norms = layouts.option("tensor.norms", "whole") == "cut"
    left_bytes = np.full(len(degrees), float(graph.parameter_bytes))
    left = np.full(len(degrees), float(graph.num_tensors))
    for split in apart.values():
        is_apart = is_cut(split, degrees) | (split.kind in STAYS_WHOLE)
        left_bytes -= is_apart * float(split.parameter_bytes * graph.times(split.path))
        left -= is_apart * float(graph.times(split.path))
    size = np.where(cuts_norms, left_bytes, summed_bytes)
    number = np.where(cuts_norms, left, num_summed)
    for one, times in gradient_sums(graph, layouts, size, number, cuts_norms):
        yield "", "all_reduce", one, times * (degrees > 1), "backward", True
