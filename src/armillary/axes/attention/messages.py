"""What attention sends where positions are cut: round a ring of ranks, or turned into heads."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from armillary.axes.attention.heads import sent_key_heads
from armillary.spec import Attention, ModelGraph
from armillary.spec.layouts import Layouts

Column = NDArray[np.float64]
Message = tuple[str, Any, Any, str, str, bool]
"""torch's name of the collective, bytes, how often in a call, the pass, what hides it, and whether
it stays wide under autocast."""
AXIS = "sequence"


def attention_messages(
    attention: Attention, graph: ModelGraph, layouts: Layouts, samples: Column
) -> Iterator[Message]:
    """What a call of `attention` sends, of `samples` of a rank and the heads that it has."""
    if attention.key_length != attention.length:
        return
    is_split = any(split.path.startswith(attention.path) for split in graph.splits)
    shares = layouts.degree("tensor") if is_split else np.ones_like(layouts.degree("tensor"))
    sizes = _Sizes(
        query=attention.query_bytes * samples / shares,
        key=attention.key_bytes * samples / shares,
        width=(attention.value_bytes or attention.key_bytes) / max(attention.key_bytes, 1),
    )
    by_heads = layouts.option(f"{AXIS}.attention", "ring") == "heads"
    if not by_heads.all():
        yield from _ring(attention, layouts, sizes, ~by_heads)
    if by_heads.any():
        held = np.maximum(attention.num_key_heads // shares, 1)
        yield from _heads(layouts, sizes, held, by_heads)


class _Sizes(NamedTuple):
    """Bytes of queries and keys of a rank, and the width of values for one of keys."""

    query: Column
    key: Column
    width: float


def _ring(attention: Attention, layouts: Layouts, sizes: _Sizes, is_sent: Any) -> Iterator[Message]:
    """Keys and values once to every other rank in each pass, their gradients, as sums, to all."""
    degrees = layouts.degree(AXIS).astype(np.float64)
    turns = is_sent & attention.is_causal & (attention.length % (2 * degrees) == 0)
    turns &= layouts.option(f"{AXIS}.balance", "zigzag") == "zigzag"
    both = sizes.key * (1 + sizes.width)
    for phase in ("forward", "backward"):
        yield "batch_isend_irecv", both, is_sent * (degrees - 1), phase, phase, False
    yield "batch_isend_irecv", both, is_sent * degrees, "backward", "backward", True
    for phase in ("forward", "backward"):
        yield "all_to_all_single", sizes.query + both, turns, phase, phase, False
        yield "all_to_all_single", sizes.query * sizes.width, turns, phase, phase, False


def _heads(
    layouts: Layouts, sizes: _Sizes, held: NDArray[np.int64], is_sent: Any
) -> Iterator[Message]:
    """Queries, keys, values and the result, each turned once in each pass."""
    keys = sizes.key * sent_key_heads(held, layouts.degree(AXIS)) / held
    for phase in ("forward", "backward"):
        for size in (sizes.query, keys):
            for width in (1.0, sizes.width):
                yield "all_to_all_single", size * width, is_sent * 1.0, phase, "", False
