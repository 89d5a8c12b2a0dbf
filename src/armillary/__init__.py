"""Armillary trains one scientific PyTorch model across a whole machine as if it were one."""

from typing import TYPE_CHECKING, Any

from armillary.spec import Layout, SpecError

if TYPE_CHECKING:
    from armillary.models.experts import BalanceBias, Experts
    from armillary.step.batches import pad_collate
    from armillary.step.parallel import parallelize

__version__ = "0.1.0"
__all__ = [
    "BalanceBias",
    "Experts",
    "Layout",
    "SpecError",
    "pad_collate",
    "parallelize",
    "verify",
]

_FROM_TORCH = {
    "BalanceBias": "armillary.models.experts",
    "Experts": "armillary.models.experts",
    "pad_collate": "armillary.step.batches",
    "parallelize": "armillary.step.parallel",
}


def __getattr__(name: str) -> Any:
    """The names that need torch, imported when first asked for."""
    import importlib

    if name == "verify":  # the room is the word (verify/__init__.py)
        return importlib.import_module("armillary.verify")
    if name not in _FROM_TORCH:
        raise AttributeError(f"module 'armillary' has no attribute {name!r}")
    return getattr(importlib.import_module(_FROM_TORCH[name]), name)
