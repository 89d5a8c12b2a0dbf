"""What a step costs and a device keeps if states or activations lie in the host's memory.

A price of what might be: `train` keeps everything on the device, so a search offers no such layout
unless a grid is made with some.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.plan.grid import Column, Grid
from armillary.spec import Machine, SpecError

STATES, ACTIVATIONS = "optimiser", "activations"
OFFLOADS = ("none", STATES, ACTIVATIONS, f"{STATES}+{ACTIVATIONS}")
NUM_AT_ONCE = 2.0
"""Blocks whose share is on the device at once: the one at work, and the next, which is moved."""


def is_used(grid: Grid) -> bool:
    """Whether any layout of the grid keeps something on the host."""
    return grid.offloads != ("none",)


def offload(
    memory: Mapping[str, Column],
    windows_s: tuple[Column, Column],
    num_kept: Column,
    micro: Column,
    num_blocks: int,
    grid: Grid,
    machine: Machine,
) -> tuple[dict[str, Column], Column, NDArray[np.bool_]]:
    """The memory that is left, the seconds that moving adds, and where the host has no room.

    Optimiser states pass through the device as they are updated, out and in at once. Activations
    go out beside the forward pass and come back beside the backward pass: `windows_s` are those of
    a micro batch, and what is longer than they are is waited for. `num_kept` are the micro batches
    whose activations are kept.

    Raises: `SpecError` if the link to the host is not known.
    Source: Ren et al. 2021, "ZeRO-Offload", arXiv 2101.06840, section 4 (states); Rhu et al. 2016,
    "vDNN", arXiv 1602.08124, section 3 (activations, beside the passes).
    """
    rate = machine.host.link_bytes_per_s
    if not rate:
        raise SpecError(
            "machine.host.link_bytes_per_s",
            f"not known of {machine.name}",
            "moving to the host is priced by the link to it (plan/offload.py)",
            "give the number and its source, or plan without offloading",
        )
    states = _along(grid, STATES) * memory["optimiser"]
    kept = _along(grid, ACTIVATIONS) * memory["activations"]
    moved_s = kept / np.maximum(num_kept, 1.0) / rate
    waited = sum(np.maximum(moved_s - window, 0.0) for window in windows_s)
    left = 1.0 - min(NUM_AT_ONCE / max(num_blocks, 1), 1.0)
    away = {"optimiser": states * left, "activations": kept * left}
    found = {name: size - away.get(name, 0.0) for name, size in memory.items()}
    has_no_room = (away["optimiser"] + away["activations"]) > machine.host.memory_bytes
    return found, np.asarray(states / rate + micro * waited), np.asarray(has_no_room)


def _along(grid: Grid, what: str) -> NDArray[Any]:
    """1 where the choice moves it, along the choices of a grid."""
    return grid.along("offload", [float(what in words.split("+")) for words in grid.offloads])
