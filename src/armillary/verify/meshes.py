"""What torch keeps of a mesh after its process groups are gone, given back between two layouts.

DTensor remembers by mesh how it placed every operator, and a mesh that is remembered keeps its
groups: two threads a group, and sockets, on every rank, for every layout that was proven.
"""

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

KEEPER = "torch.distributed."


def start_forgetting() -> Callable[[], None]:
    """What empties torch's tables of placements in this process, to be called after each layout.

    What lives now, torch itself above all, is never looked through again: a thorough collection
    then takes a tenth of the time.
    """
    import torch
    from torch.distributed.tensor import _redistribute

    empty = [kept.cache_clear for kept in _tables()]
    # a torch that has no such table is left as it is
    empty += filter(
        None,
        (
            getattr(torch._C, "_clear_DTensor_sharding_propagator_cache", None),
            getattr(_redistribute, "clear_redistribute_planner_cache", None),
        ),
    )
    gc.collect()
    gc.freeze()

    def forget() -> None:
        for clear in empty:
            clear()
        for made_since in _tables():
            made_since.cache_clear()
        gc.collect()

    return forget


def _tables() -> Iterator[Any]:
    """Tables of results that torch.distributed keeps in memory, but those that are frozen."""
    for kept in gc.get_objects():
        if type(kept) is functools._lru_cache_wrapper:  # isinstance would ask stand-ins for a class
            module: Any = kept.__module__
            if str(module).startswith(KEEPER):
                yield kept
