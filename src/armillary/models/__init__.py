"""Reading a model: any `nn.Module` as numbers; nothing here knows a device.

Families of models (`models.families`) and stored graphs are read without torch, so what needs torch
is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from armillary.models.reading import read
    from armillary.models.tracing import trace
    from armillary.models.watch import Call, Seen

__all__ = ["Call", "Seen", "read", "trace"]
_PLACES = {"Call": "watch", "Seen": "watch", "read": "reading", "trace": "tracing"}


def __getattr__(name: str) -> Any:
    """What this room offers, imported from its file on the first use."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
