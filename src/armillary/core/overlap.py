"""What of a transfer the passes beside it do not hide."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def exposed_s(sent_s: Any, window_s: Any, num_pieces: Any) -> Array:
    """Seconds of messages that the passes do not hide, of `num_pieces` that are sent one by one.

    While `window_s` seconds of passes run messages are sent beside them; at least one piece is
    left at an end, when nothing is computed any more.

    Source: Li et al. 2020, "PyTorch Distributed", VLDB 13(12), section 3.2.3 (buckets).
    """
    return np.maximum(sent_s - window_s, sent_s / np.maximum(num_pieces, 1.0))


def bucketed_s(sent_s: Any, backward_s: Any, num_buckets: Any) -> Array:
    """Seconds that reducing gradients in equal buckets adds to a backward pass of `backward_s`.

    Bucket i of n is ready after i/n of the backward pass and is sent after the one before it. The
    last is ready at the end: what is left then is the longer of it alone, and of all that was sent
    since the first was ready.

    Source: Li et al. 2020, as above; the recurrence end_i = max(end_{i-1}, ready_i) + sent_i with
    equal buckets is linear, so its end is at one of its two ends.
    """
    n = np.maximum(num_buckets, 1.0)
    return np.maximum(sent_s / n, sent_s - backward_s * (n - 1.0) / n)


def gathered_s(
    forward_s: Any,
    backward_s: Any,
    gather_s: Any,
    scatter_s: Any,
    num_blocks: Any,
    hidden: Any = 1.0,
    gathers_again: Any = 1.0,
) -> Array:
    """Seconds that sharded parameters add to a forward and a backward pass of equal blocks.

    All seconds are of one block. The parameters of the next block are gathered while one is
    computed, those of the first and the gradients of the last are waited for:
    T = G + sum max(F, G) + sum max(B, G' + S) + S, of which F and B are left out here. `hidden` is
    the share of what could be hidden that is, `gathers_again` 1 where the backward pass gathers
    once more (ZeRO-3) and 0 where the parameters stay (ZeRO-2).

    Source: Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277, sections 3.3 and 4.3.
    """
    again_s = gather_s * gathers_again
    in_forward = np.maximum(gather_s - forward_s, (1.0 - hidden) * np.minimum(gather_s, forward_s))
    beside = again_s + scatter_s
    in_backward = np.maximum(beside - backward_s, (1.0 - hidden) * np.minimum(beside, backward_s))
    inner = np.maximum(num_blocks - 1.0, 0.0)
    return np.asarray(gather_s + inner * (in_forward + in_backward) + again_s + scatter_s)


def contended_s(pass_s: Any, beside_s: Any, slowdown: Any) -> Array:
    """Seconds that a pass takes longer because of messages that run beside it for `beside_s`.

    `slowdown` is the share of the device that they take while they run.

    Source: a measured coefficient, Miao et al. 2022 (Galvatron), arXiv 2211.13878, section 4.2;
    its value is fitted (`plan/calibration.toml`).
    """
    return np.asarray(slowdown * np.minimum(beside_s, pass_s))
