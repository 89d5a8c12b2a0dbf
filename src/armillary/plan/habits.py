"""What a program makes of an op: how often it runs, how much slower, and what of it is kept."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from armillary.core import compute
from armillary.plan.grid import Column
from armillary.plan.software import Software
from armillary.spec import ModelGraph, Op, Segment

if TYPE_CHECKING:
    from armillary.plan.work import Keys

UNFUSED_TIMES = 3.0
"""For each of them that many kernels run where it refuses: to 32 bits, the op itself, and back.

Source: as of `SCORES_MULTIPLE`, `forward_torch_softmax`.
"""
FUSED_SCORES = ("mul", "masked_fill")
"""Ops on the scores that a fused softmax does in passing."""
SCORES_MULTIPLE, SCORES_LENGTH = 4, 2048
"""A fused softmax takes so many heads of all samples, or a multiple, and keys up to this length.

Source: Megatron-LM, megatron/fused_kernels (2021), `FusedScaleMaskSoftmax.is_kernel_available`.
"""
KEPT = ("matmul", "attention", "convolution")
"""The kinds of op whose results selective recomputing keeps."""


def is_of_scores(op: Op) -> bool:
    """Whether the op is a product of activations, as those around the scores of an attention."""
    return op.kind == "matmul" and op.name == "bmm" and not op.parameter_bytes


@dataclass(frozen=True, slots=True)
class Task:
    """An op wherever it lies; `is_in_attention`: it makes or takes scores, those of `scores`."""

    op: Op
    is_in_attention: bool
    scores: Op | None


@lru_cache(maxsize=256)
def tasks(segment: Segment) -> Mapping[Task, int]:
    """The ops of a segment, each in the order in which it first runs, and how many are alike."""
    products: dict[str, Op] = {}
    for op in segment.ops:
        if op.name == "bmm":
            products.setdefault(op.path, op)
    scored = {op.path for op in segment.ops if is_of_scores(op)}
    return Counter(
        Task(
            op=replace(op, path=""),
            is_in_attention=op.path in scored and not op.parameter_bytes,
            scores=_anywhere(products.get(op.path)) if op.name in FUSED_SCORES else None,
        )
        for op in segment.ops
    )


def _anywhere(op: Op | None) -> Op | None:
    return op and replace(op, path="")


def times_run(task: Task, software: Software, keys: "Keys") -> float | Column:
    """How often it runs: 0 where a fused softmax does it in passing, more where it refuses."""
    scores = task.scores
    if not software.fuses_scores or scores is None or scores.columns > SCORES_LENGTH:
        return 1.0
    heads = scores.batch * keys.samples * keys.part(scores).batch
    return np.where(heads % SCORES_MULTIPLE == 0, 0.0, UNFUSED_TIMES)


def share_kept(op: Op, software: Software, is_in_attention: bool) -> float:
    """How much of the op selective recomputing does not repeat; see `Software.selective_keeps`."""
    if software.selective_keeps == "attention":
        return float(op.kind != "attention" and not is_in_attention)
    if op.kind == "matmul" and software.selective_keeps == "every second matmul":
        return 0.5
    return float(op.kind in KEPT)


def kept_of(op: Op, software: Software, keys: "Keys") -> Any:
    """The share of what autograd saves of an op that fused kernels keep.

    That of a gate keeps its two inputs, of which the activation function keeps one; rows are put
    back in order, and summed by their weights, from numbers alone. Where products are of 8 bits
    and fewer their inputs are kept so.

    Source: NVIDIA Transformer Engine and Megatron-Core (`bias_swiglu_impl`, `permute`).
    """
    if not software.fuses_kept:
        return 1.0
    if op.kind == "stream" and op.name == "mul":
        return 0.5 if op.cut or op.experts else 0.0
    if op.name == "index_copy":
        return 0.0
    if op.kind == "matmul" or op.name == "index":
        return np.where(keys.is_quantised, 0.5, 1.0)
    return 1.0


def slower(
    op: Op, graph: ModelGraph, rates: compute.Rates, software: Software, keys: "Keys"
) -> Any:
    """How many times as long an op takes as its sizes say, under this software."""
    if op.cut == "words" and op.kind == "stream":
        return software.loss_passes
    if op.kind == "matmul" and not op.parameter_bytes:
        whole = compute.is_aligned(op.columns, rates.element_bytes)
        whole = whole & compute.is_aligned(op.inner, rates.element_bytes)
        return np.where(whole, 1.0, software.unaligned_slowdown)
    if op.kind == "convolution" and op.inner * op.rows * graph.element_bytes > 1.5 * op.read_bytes:
        # a window of several taps: what it reads is less than the product that it amounts to
        return np.where(keys.is_single, 1.0 / software.convolution_speedup, 1.0)
    return 1.0
