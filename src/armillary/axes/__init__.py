"""The axes of parallelism: one file = one axis, found by discovery, all with the same doors."""

import importlib
import pkgutil
from functools import cache

from armillary.axes.door import Axis, DrivesSteps, Part, Refusal, Shares, Transfer
from armillary.spec import Layout, ModelGraph, SpecError, nearest
from armillary.spec.layouts import Layouts

__all__ = ["Axis", "DrivesSteps", "Part", "Refusal", "Shares", "Transfer", "admit", "discover"]


@cache
def discover() -> dict[str, Axis]:
    """The axes by name: every file of this room that defines `AXIS`."""
    found = {}
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        if hasattr(module, "AXIS"):
            found[module.AXIS.name] = module.AXIS
    return found


def admit(layout: Layout, graph: ModelGraph | None = None, *, num_micro_batches: int = 0) -> None:
    """Raise `SpecError` if `layout` names an unknown axis or option, or an axis cannot serve
    `graph` in steps of so many micro batches a rank; 0 where that is not known.
    """
    axes = discover()
    for name in layout.degrees:
        if name not in axes:
            raise SpecError(
                f"layout.{name}",
                "unknown axis or setting",
                f"the axes are {', '.join(sorted(axes))}",
                nearest(name, axes),
            )
    for name, value in layout.options.items():
        _admit_option(name, value)
    if graph is None:
        return
    # without a number several are meant where a size is given: as many as any schedule takes
    number = num_micro_batches or (2 * layout.num_ranks if layout.micro_batch_size else 1)
    table = Layouts.of(layout, num_micro_batches=number)
    for axis in axes.values():
        for refusal in axis.admits(graph, table):
            if refusal.refused.any():
                raise refusal.reason


def _admit_option(name: str, value: str) -> None:
    known = {
        f"{axis.name}.{option}": choices
        for axis in discover().values()
        for option, choices in axis.options.items()
    }
    if name not in known:
        raise SpecError(
            f"layout.{name}",
            "unknown option of an axis",
            f"the options are {', '.join(sorted(known)) or 'none'}",
            nearest(name, known),
        )
    if value not in known[name]:
        raise SpecError(
            f"layout.{name}",
            repr(value),
            f"{name} is one of {', '.join(known[name])}",
            nearest(value, known[name]),
        )
