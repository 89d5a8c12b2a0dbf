"""What is sent where the rows of a grid, or positions, are cut: rows at the edges, and sums."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from armillary.axes.regions.messages import is_cut
from armillary.spec import ModelGraph, Stencil, Sum
from armillary.spec.layouts import Layouts

Column = NDArray[np.float64]
Message = tuple[str, Column, int, str, str, bool]
"""torch's name of the collective, bytes, how often in a call of the model, the pass, what hides it,
and whether it stays wide under autocast."""
AXIS = "sequence"


def row_messages(
    stencil: Stencil, graph: ModelGraph, layouts: Layouts, samples: Column
) -> Iterator[Message]:
    """The rows that a neighbour needs, and in the backward pass their gradients.

    Of a rank between others: at an end of the grid that is no ring only one side is sent.
    """
    shares = _channel_shares(f"{stencil.path}.weight", ("row", "inside"), graph, layouts)
    size = stencil.position_bytes * samples * layouts.degree(AXIS) / shares
    for phase in ("forward", "backward"):
        for rows in (stencil.before, stencil.after):
            if rows and (phase == "forward" or stencil.has_gradient):
                yield "batch_isend_irecv", rows * size, stencil.num_calls, phase, phase, False


def sum_messages(
    added: Sum, graph: ModelGraph, layouts: Layouts, samples: Column
) -> Iterator[Message]:
    """A norm by groups: each rank's mean and spread, then sums of gradients. The experts' balance:
    sums whose gradient every rank knows.
    """
    size = added.sample_bytes * samples
    if not added.num_groups:
        yield "all_reduce", size, added.num_calls, "forward", "", True
        return
    size = size / _channel_shares(f"{added.path}.weight", ("inside",), graph, layouts)
    each = size * layouts.degree(AXIS)
    yield "all_gather_into_tensor", each, added.num_calls, "forward", "", True
    yield "all_reduce", size, added.num_calls, "backward", "", True


def _channel_shares(
    path: str, kinds: tuple[str, ...], graph: ModelGraph, layouts: Layouts
) -> Column:
    """Over how many ranks the channels are shared out that the parameter at `path` acts on."""
    degrees = layouts.degree("tensor")
    shares = np.ones(layouts.num_layouts)
    for split in graph.splits:
        if split.path == path and split.kind in kinds:
            shares = np.where(is_cut(split, degrees), degrees, shares)
    return shares
