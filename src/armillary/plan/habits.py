"""What a program makes of an op: how often it runs, how much slower, and what of it is kept."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from armillary.core import compute
from armillary.plan.grid import Column, Grid
from armillary.plan.software import Software
from armillary.spec import Device, ModelGraph, Op, Segment

if TYPE_CHECKING:
    from armillary.plan.parts import Keys

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
QUANTISED = ("float8", "float4")
"""Precisions that only products with parameters are computed in."""
CAST_BYTES = 4.0
"""Bytes moved to quantise an element: 16 bits read, and 8 written in each of two orders.

What is multiplied forward and for the gradient of weights is quantised once, of products of the
same input for all of them, and so is the gradient of what they put out.

Source: NVIDIA Transformer Engine, `Float8Quantizer` with row- and column-wise usage.
"""
OF_QUANTISING = ("matmul_start_s", "half_columns")
"""The efficiencies that tables of 8-bit products tell with the quantising of each, left out here.

Source: aiconfigurator-core 0.12.0, tables of TensorRT-LLM: the fitted `half_columns` of fp8 is
1,500 to 2,300 for 30 to 250 in bf16, which are 5 to 8 bytes for each element of the left factor.
"""
KEPT = ("matmul", "attention", "convolution")
"""The kinds of op whose results selective recomputing keeps."""


def is_of_scores(op: Op) -> bool:
    """Whether the op is a product of activations, as those around the scores of an attention."""
    return op.kind == "matmul" and op.name == "bmm" and not op.parameter_bytes


def is_quantised(op: Op) -> bool:
    """Whether a program that computes in 8 bits and fewer does so with this op.

    Only products with parameters are, of blocks: attention and the product of the head are left in
    16 bits.

    Source: NVIDIA Transformer Engine, `fp8_dpa` off by default, and Megatron-Core, whose output
    layer is none of it; torchtitan, `filter_fqns = ["output"]`.
    """
    return op.kind == "matmul" and op.parameter_bytes > 0 and op.cut != "words"


def in_16_bits(grid: Grid, device: Device) -> Grid:
    """`grid` with the precisions of what is not quantised."""
    name = "bfloat16" if device.peak_flops_per_s.get("bfloat16", 0.0) > 0 else "float16"
    return replace(grid, precisions=tuple(name if p in QUANTISED else p for p in grid.precisions))


def num_repeated(ops: Sequence[Op]) -> int:
    """How many ops of a block are run again where recomputing stops at the last that is needed.

    That keeps what it takes in, so the last product is not run, nor what follows it.

    Source: pytorch, `torch.utils.checkpoint.set_checkpoint_early_stop` (2023), on by default.
    """
    keeping = [index for index, op in enumerate(ops) if op.saved_bytes]
    if not keeping:
        return 0
    last = ops[keeping[-1]]
    return keeping[-1] + (last.kind != "matmul" or not last.parameter_bytes)


def as_sent(graph: ModelGraph, software: Software) -> ModelGraph:
    """`graph` as its messages are sent again: the last of a block too where all is run again."""
    if software.stops_early or not any(split.ends_block for split in graph.splits):
        return graph
    return replace(graph, splits=tuple(replace(s, ends_block=False) for s in graph.splits))


@dataclass(frozen=True, slots=True)
class Task:
    """An op wherever it lies; `is_in_attention`: it makes or takes scores, those of `scores`.

    `is_needed_again` is false of those that recomputing need not run, see `num_repeated`.
    """

    op: Op
    is_in_attention: bool
    is_needed_again: bool
    scores: Op | None


@lru_cache(maxsize=256)
def tasks(segment: Segment) -> Mapping[Task, int]:
    """The ops of a segment, each in the order in which it first runs, and how many are alike."""
    products: dict[str, Op] = {}
    for op in segment.ops:
        if op.name == "bmm":
            products.setdefault(op.path, op)
    scored = {op.path for op in segment.ops if is_of_scores(op)}
    end = num_repeated(segment.ops)
    return Counter(
        Task(
            op=replace(op, path=""),
            is_in_attention=op.path in scored and not op.parameter_bytes,
            is_needed_again=index < end,
            scores=_anywhere(products.get(op.path)) if op.name in FUSED_SCORES else None,
        )
        for index, op in enumerate(segment.ops)
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
