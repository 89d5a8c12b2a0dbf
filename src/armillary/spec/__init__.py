"""Frozen documents, words and errors: the ground floor, which imports no other room.

What only a plan needs is imported on its first use: a training run does not wait for it.
"""

from typing import TYPE_CHECKING, Any

from armillary.spec.document import (
    Document,
    closed_to_others,
    likely,
    nearest,
    write_atomically,
)
from armillary.spec.error import SpecError, reason
from armillary.spec.layout import Layout
from armillary.spec.manifest import Manifest
from armillary.spec.model_graph import (
    Attention,
    Block,
    Glue,
    ModelGraph,
    Op,
    Positions,
    Routed,
    Segment,
    Split,
    Stencil,
    Sum,
)
from armillary.spec.settings import TrainSettings

if TYPE_CHECKING:
    from armillary.spec.machine import (
        DTYPES,
        CollectiveFit,
        Device,
        Efficiency,
        Failures,
        Host,
        Level,
        Machine,
        Price,
        Storage,
    )
    from armillary.spec.plan import (
        Candidate,
        Plan,
        Refused,
        ScalingPoint,
        Search,
        Survival,
        Term,
        WhyNot,
        read_layout,
        read_plan,
    )
    from armillary.spec.workload import Message, StageWork, Workload

__all__ = [
    "DTYPES",
    "Attention",
    "Block",
    "Candidate",
    "CollectiveFit",
    "Device",
    "Document",
    "Efficiency",
    "Failures",
    "Glue",
    "Host",
    "Layout",
    "Level",
    "Machine",
    "Manifest",
    "Message",
    "ModelGraph",
    "Op",
    "Plan",
    "Positions",
    "Price",
    "Refused",
    "Routed",
    "ScalingPoint",
    "Search",
    "Segment",
    "SpecError",
    "Split",
    "StageWork",
    "Stencil",
    "Storage",
    "Sum",
    "Survival",
    "Term",
    "TrainSettings",
    "WhyNot",
    "Workload",
    "closed_to_others",
    "likely",
    "nearest",
    "read_layout",
    "read_plan",
    "reason",
    "write_atomically",
]
_PLACES = {
    "machine": (
        "DTYPES",
        "CollectiveFit",
        "Device",
        "Efficiency",
        "Failures",
        "Host",
        "Level",
        "Machine",
        "Price",
        "Storage",
    ),
    "plan": (
        "Candidate",
        "Plan",
        "Refused",
        "ScalingPoint",
        "Search",
        "Survival",
        "Term",
        "WhyNot",
        "read_layout",
        "read_plan",
    ),
    "workload": ("Message", "StageWork", "Workload"),
}


def __getattr__(name: str) -> Any:
    """What is imported on its first use."""
    import importlib

    for place, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{place}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
