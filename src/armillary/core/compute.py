"""Seconds of a device's work: products, attention, what is bound by memory, and steps in a row."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SCORE_PASSES = (5.5, 9.5)
"""How often an attention in separate kernels reads or writes each score, forward and backward.

Forward: the product writes it, softmax reads and writes, dropout reads and writes, with a mask of
half an element, the second product reads. Backward: the second product writes its gradient and
reads the score, dropout reads and writes, softmax reads two and writes one, two products read.

Source: Korthikanti et al. 2022, arXiv 2205.05198, figure 3, counted kernel by kernel.
"""
ALIGNED_BYTES = 16
"""Rows of a 16-bit product that are no multiple of this are not loaded in whole words.

Source: NVIDIA, Matrix Multiplication Background User's Guide, section 4.1 (tensor-core
requirements).
"""

WINOGRAD_TAPS, WINOGRAD_FACTOR = (8.0, 9.6), 3.5
"""Convolutions of so many taps in float32 are computed with so many times fewer multiplications.

Source: Lavin and Gray 2015, arXiv 1509.09308, table 1: 2.25 for tiles of 2 x 2, 4 for tiles of
4 x 4; 3.5 is fitted between them to U-Net on V100, which runs above its peak of float32.
"""
FOURIER_TAPS, FOURIER_FACTOR = (10.0, 26.5), 6.0
"""The same of longer kernels, which are products after a Fourier transform.

Source: Mathieu et al. 2013, arXiv 1312.5851; the factor is fitted to Jasper on V100 (kernels of 11
to 29 taps), which runs at 1.4 times its peak of float32.
"""
DEPTHWISE_FRACTION = 0.08
"""The share of the memory rate that a convolution of one channel a group reaches.

Source: fitted to DeepCAM on V100, A100 and H100 (MLPerf HPC), whose runs differ by a factor of 2.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a device does in a second, as numbers or as arrays over precisions.

    The fields are those of `spec.Efficiency`, beside the peaks that they are shares of.
    """

    peak_flops_per_s: Any
    memory_bytes_per_s: Any
    element_bytes: Any
    matmul_start_s: Any
    matmul_fraction: Any
    matmul_memory_fraction: Any
    half_rows: Any
    half_columns: Any
    half_inner: Any
    attention_fraction: Any
    stream_fraction: Any
    launch_s: Any
    convolution_fraction: Any = 0.6
    half_channels: Any = 60.0
    scan_step_s: Any = 0.0
    stream_start_s: Any = 0.0
    is_full: Any = False

    def scaled(self, **factors: float) -> "Rates":
        """The rates with some fields multiplied."""
        return replace(self, **{name: getattr(self, name) * f for name, f in factors.items()})


def matmul_s(rows: Any, columns: Any, inner: Any, batch: Any, rates: Rates) -> Array:
    """Seconds of `batch` products of [rows x inner] by [inner x columns]; arrays broadcast.

    What is lost at the edges of one product, in tiles that are not full and units without a tile,
    many products share: it shrinks with their number as with the size of one.

    Source: a saturating roofline: `spec.Efficiency` gives the form; on measured tables of H100 and
    H200 its mean error is 5 to 6 % (docs/networks.md).
    """
    flops = 2.0 * rows * columns * inner * batch
    filling = np.sqrt(np.maximum(batch, 1.0))
    slower = (
        (1.0 + rates.half_rows / (rows * filling))
        * (1.0 + rates.half_columns / (columns * filling))
        * (1.0 + rates.half_inner / inner)
    )
    compute_s = flops * slower / (rates.peak_flops_per_s * rates.matmul_fraction)
    moved = (rows * inner + inner * columns + rows * columns) * batch * rates.element_bytes
    memory_s = moved / (rates.memory_bytes_per_s * rates.matmul_memory_fraction)
    return np.asarray(rates.matmul_start_s + np.maximum(compute_s, memory_s))


def convolution_s(
    flops: Any,
    sizes: tuple[Any, Any, Any],
    moved_bytes: Any,
    taps: Any,
    rates: Rates,
    *,
    is_depthwise: bool = False,
) -> Array:
    """Seconds of a convolution of `flops` that moves `moved_bytes`: activations and filters once.

    `sizes` are those of the product that it amounts to: output positions, output channels, and
    input channels times taps, in any order. Filters slide over what is in the cache, so the bytes
    are not those of that product, which holds every input `taps` times. One `is_depthwise` has one
    channel a group and is bound by memory.

    Source: `spec.Efficiency` gives the form, `fewer_multiplications` and `DEPTHWISE_FRACTION` the
    rest.
    """
    slower: Any = 1.0
    for size in sizes:
        slower = slower * (1.0 + rates.half_channels / np.maximum(size, 1.0))
    rate = rates.peak_flops_per_s * rates.convolution_fraction
    compute_s = flops * slower / (rate * fewer_multiplications(taps, rates.is_full))
    share = DEPTHWISE_FRACTION if is_depthwise else rates.matmul_memory_fraction
    memory_s = moved_bytes / (rates.memory_bytes_per_s * share)
    return np.asarray(rates.matmul_start_s + np.maximum(compute_s * (not is_depthwise), memory_s))


def fewer_multiplications(taps: Any, is_full: Any) -> Array:
    """By how much fewer multiplications a convolution needs than its definition has.

    `is_full` says where numbers of float32 are multiplied in full; units for matrices, which
    multiply shorter ones, gain nothing by it.

    Source: `WINOGRAD_FACTOR`, `FOURIER_FACTOR`.
    """
    winograd = (taps > WINOGRAD_TAPS[0]) & (taps < WINOGRAD_TAPS[1])
    fourier = (taps > FOURIER_TAPS[0]) & (taps < FOURIER_TAPS[1])
    factor = np.where(winograd, WINOGRAD_FACTOR, np.where(fourier, FOURIER_FACTOR, 1.0))
    return np.asarray(np.where(is_full, factor, 1.0))


def slowest_of(num_ranks: Any, spread: float) -> Array:
    """How much longer the slowest of `num_ranks` takes than the mean, as a share of the mean.

    `spread` is the relative standard deviation of a rank's time.

    Source: the mean of the largest of n normal numbers is at most sqrt(2 ln n) deviations above
    theirs.
    """
    return np.asarray(spread * np.sqrt(2.0 * np.log(np.maximum(num_ranks, 1.0))))


def stream_s(moved_bytes: Any, rates: Rates) -> Array:
    """Seconds to read and write `moved_bytes` in all."""
    return np.asarray(moved_bytes / (rates.memory_bytes_per_s * rates.stream_fraction))


def attention_s(flops: Any, moved_bytes: Any, rates: Rates) -> Array:
    """Seconds of a fused attention that computes `flops` and moves `moved_bytes`."""
    compute_s = flops / (rates.peak_flops_per_s * rates.attention_fraction)
    return np.asarray(rates.matmul_start_s + np.maximum(compute_s, stream_s(moved_bytes, rates)))


def unfused_attention_s(
    flops: Any, num_scores: Any, score_bytes: Any, passes: float, rates: Rates
) -> Array:
    """Seconds of an attention whose `num_scores` scores go through memory `passes` times.

    `flops` are those of the whole square: what is masked is computed. The products are small and
    of many heads; `rates.attention_fraction` is theirs, and the kernels run one after the other.

    Source: `SCORE_PASSES`.
    """
    compute_s = flops / (rates.peak_flops_per_s * rates.attention_fraction)
    moved = num_scores * score_bytes * passes
    return np.asarray(rates.matmul_start_s + compute_s + stream_s(moved, rates))


def is_aligned(size: Any, element_bytes: Any) -> NDArray[np.bool_]:
    """Whether rows of `size` elements are whole words for units that multiply 16-bit numbers."""
    return np.asarray(np.mod(size * element_bytes, ALIGNED_BYTES) == 0)


def scan_s(steps: Any, step_rows: Any, columns: Any, inner: Any, rates: Rates) -> Array:
    """Seconds of `steps` products that wait for one another, each launched on its own."""
    one = matmul_s(step_rows, columns, inner, 1.0, rates)
    return np.asarray(steps * np.maximum(one, np.maximum(rates.launch_s, rates.scan_step_s)))


def waited_s(busy_s: Any, launch_s: Any) -> Array:
    """Seconds that a pass takes longer than `busy_s` since its host needs `launch_s` to launch it.

    Host and device run beside each other and the slower sets the pace, kernel by kernel: of a pass
    whose kernels differ some wait for the host and others for the device. The root of the sum of
    fourth powers is the larger where one is far larger, and a fifth above both where both are
    equal.

    Source: form and power fitted on 720 runs of small models (vTrain; docs/plan.md).
    """
    busy, launch = np.square(np.square(busy_s)), np.square(np.square(launch_s))
    return np.asarray(np.maximum(np.sqrt(np.sqrt(busy + launch)) - busy_s, 0.0))


def deduplicated(copies: Any, places: Any) -> Array:
    """At how many of `places` a token is that was sent to `copies` experts drawn evenly.

    Source: the mean number of occupied bins of a throw of balls: p (1 - (1 - 1/p)^k).
    """
    p = np.maximum(np.asarray(places, np.float64), 1.0)
    return np.asarray(p * (1.0 - (1.0 - 1.0 / p) ** copies))
