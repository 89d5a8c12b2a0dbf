"""Bytes on the fullest rank, by what they are for, from arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def states_bytes(
    num_parameters: Any,
    shards: Any,
    zero: Any,
    parameter_bytes: Any,
    gradient_bytes: Any,
    optimizer_bytes: Any,
) -> dict[str, Array]:
    """Bytes of parameters, gradients and optimiser states of a rank that holds `num_parameters`.

    The `_bytes` are of one parameter. `zero` is the stage of sharding over `shards` ranks: 0 keeps
    all whole, 1 cuts the optimiser's states, 2 also gradients, 3 also parameters.

    Source: Rajbhandari et al. 2020, arXiv 1910.02054, section 5 and figure 1.
    """
    whole = np.asarray(num_parameters, np.float64)
    cut = {stage: np.where(np.asarray(zero) >= stage, shards, 1.0) for stage in (1, 2, 3)}
    return {
        "parameters": whole * parameter_bytes / cut[3],
        "gradients": whole * gradient_bytes / cut[2],
        "optimiser": whole * optimizer_bytes / cut[1],
    }


def activations_bytes(
    kept_per_block: Any, num_blocks: Any, num_kept: Any, again_per_block: Any = 0.0
) -> Array:
    """Bytes of activations of a rank with `num_blocks` blocks that keeps `num_kept` micro batches.

    `kept_per_block` is of one micro batch; `again_per_block` is what the block whose backward pass
    runs has besides, where it was computed again.

    Source: Korthikanti et al. 2022, arXiv 2205.05198, sections 4.2 and 5.
    """
    return np.asarray(kept_per_block * num_blocks * num_kept + again_per_block)


def fullest(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The categories of the rank with the largest sum, key by key; all name the same categories."""
    names = list(ranks[0])
    totals = [sum((np.asarray(rank[name]) for name in names), np.zeros(())) for rank in ranks]
    best, chosen = totals[0], {name: np.asarray(ranks[0][name], np.float64) for name in names}
    for total, rank in zip(totals[1:], ranks[1:], strict=True):
        fuller = total > best
        chosen = {name: np.where(fuller, rank[name], chosen[name]) for name in names}
        best = np.where(fuller, total, best)
    return chosen


def allocated_bytes(used_bytes: Any, fragmentation: Any, overhead_bytes: Any) -> Array:
    """Bytes taken from the device where `used_bytes` are live at the peak.

    `fragmentation` is the share that the caching of memory takes besides, `overhead_bytes` what
    lies on the device whatever is computed: contexts, workspaces and buffers of messages.
    """
    return np.asarray(used_bytes * (1.0 + fragmentation) + overhead_bytes)
