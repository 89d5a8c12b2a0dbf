"""How often gradients that are partial sums are added up, and in messages of what size."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.axes.batch.times import num_reductions
from armillary.spec import ModelGraph
from armillary.spec.layouts import Layouts

Column = NDArray[np.float64]


def gradient_sums(
    graph: ModelGraph,
    layouts: Layouts,
    num_bytes: Column,
    number: Column,
    with_experts: NDArray[np.bool_],
) -> Iterator[tuple[Column, Column]]:
    """Bytes and times in a step of the sums of `number` gradients, `num_bytes` of a whole model.

    They are summed in one stream a step (`axes/partial.py`), or one by one where FSDP2 reduces
    them. Routed experts, among them where `with_experts`, are reduced apart if the expert axis cuts
    them.
    """
    experts = layouts.degree("expert")
    are_apart = (experts > 1) & with_experts
    if not are_apart.any():
        yield _summed(layouts, num_bytes, number, _is_reduced(layouts))
        return
    routed_bytes = float(sum(r.parameter_bytes * graph.times(r.path) for r in graph.routed))
    routed = float(sum(r.num_tensors * graph.times(r.path) for r in graph.routed))
    apart = are_apart.astype(np.float64)
    dense_bytes, dense = num_bytes - apart * routed_bytes, number - apart * routed
    yield _summed(layouts, dense_bytes, dense, _is_reduced(layouts))
    reduced = _is_reduced(layouts, without="expert")
    yield _summed(layouts, apart * routed_bytes / experts, apart * routed, reduced)


def _is_reduced(layouts: Layouts, without: str = "") -> NDArray[np.bool_]:
    """Where FSDP2 averages gradients over ranks that take other samples."""
    found = np.zeros(layouts.num_layouts, dtype=bool)
    for name, axis in discover().items():
        if name != without:
            found |= axis.splits_batch & (layouts.degree(name) > 1)
    return found


def _summed(
    layouts: Layouts, num_bytes: Column, number: Column, reduced: NDArray[np.bool_]
) -> tuple[Column, Column]:
    stages = layouts.degree("pipeline")
    held = np.where(reduced, number / stages, np.minimum(number, 1.0))
    times = np.where(reduced, held * num_reductions(layouts), held)
    return num_bytes / stages / np.where(held > 0, held, 1.0), times
