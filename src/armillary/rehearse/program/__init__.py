"""The real program of any rank of a layout, on fake devices.

`record` builds the model and applies the layout as `train` does, as one rank of up to a hundred
thousand, runs a step on tensors without memory, and tells what it held, computed and sent.
`ranks_that_differ` says which ranks are worth a record, `differences` holds one against the axes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from armillary.rehearse.program.against import differences
    from armillary.rehearse.program.differing import Kind, ranks_that_differ
    from armillary.rehearse.program.rank import record

__all__ = ["Kind", "differences", "ranks_that_differ", "record"]
_PLACES = {
    "Kind": "differing",
    "differences": "against",
    "ranks_that_differ": "differing",
    "record": "rank",
}


def __getattr__(name: str) -> Any:
    """What this room offers, imported from its file on the first use: all of it needs torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
