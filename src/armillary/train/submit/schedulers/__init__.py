"""Batch systems: one file = one, found by discovery."""

import importlib
import pkgutil
from functools import cache

from armillary.spec import SpecError, nearest
from armillary.train.submit.schedulers.door import Ask, Scheduler

__all__ = ["Ask", "Scheduler", "discover", "named"]


@cache
def discover() -> dict[str, Scheduler]:
    """The batch systems by name: every file of this room that defines `SCHEDULER`."""
    found: dict[str, Scheduler] = {}
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        if hasattr(module, "SCHEDULER"):
            found[module.SCHEDULER.name] = module.SCHEDULER
    return found


def named(name: str) -> Scheduler:
    """The batch system of that name.

    Raises: `SpecError` on one we have not.
    """
    if name not in discover():
        raise SpecError(
            "site.scheduler",
            repr(name),
            "a batch system is a file of train/submit/schedulers",
            nearest(name, discover()),
        )
    return discover()[name]
