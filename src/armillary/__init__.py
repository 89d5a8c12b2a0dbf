"""Armillary trains one scientific PyTorch model across a whole machine as if it were one."""

from typing import TYPE_CHECKING, Any

from armillary.spec import Layout, SpecError

if TYPE_CHECKING:
    from armillary.step.batches import pad_collate
    from armillary.step.parallel import parallelize

__version__ = "0.1.0"
__all__ = ["Layout", "SpecError", "pad_collate", "parallelize"]

_FROM_TORCH = {"parallelize": "armillary.step.parallel", "pad_collate": "armillary.step.batches"}


def __getattr__(name: str) -> Any:
    """The names that need torch, imported when first asked for."""
    if name not in _FROM_TORCH:
        raise AttributeError(f"module 'armillary' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_FROM_TORCH[name]), name)
