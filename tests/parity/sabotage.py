"""Faults as they happen in real code: each is installed in every rank of a parallel run.

A fault is a context in which one piece of the real program is replaced. The serial run is left
alone, and so is whatever the replaced piece does not serve.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from armillary.spec import Layout
from armillary.verify.program import Program, Trace, run

Fault = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sabotage:
    """A fault, the case and layout that it is installed in, and what has to be said of it.

    `suspects` are the axes to be named; `shows` is a part of what the error of the first tensor of
    `kind` looks like. `thread` is where a fault of this kind, or with this symptom, was reported.
    """

    name: str
    install: Fault
    case: str
    layout: str
    suspects: tuple[str, ...]
    kind: str
    shows: str
    thread: str
    options: dict[str, str]


FAULTS: dict[str, Sabotage] = {}
FILES = ("batch", "split", "cut")


def fault(
    case: str,
    layout: str,
    suspects: str,
    shows: str = "",
    *,
    kind: str = "gradient",
    thread: str = "",
    **options: str,
) -> Callable[[Fault], Fault]:
    """Note the decorated fault among all others."""

    def noted(install: Fault) -> Fault:
        name = install.__name__
        assert name not in FAULTS
        FAULTS[name] = Sabotage(
            name=name,
            install=install,
            case=case,
            layout=layout,
            suspects=tuple(suspects.split(",")),
            kind=kind,
            shows=shows,
            thread=thread,
            options=options,
        )
        return install

    return noted


def all_faults() -> dict[str, Sabotage]:
    """Every fault by name."""
    for file in FILES:
        importlib.import_module(f"tests.parity.sabotage_{file}")
    return FAULTS


def run_sabotaged(name: str, program: Program, layout: Layout) -> Trace:
    """What `verify` runs on a rank, with the fault `name` installed if there are others."""
    if layout.num_ranks == 1:
        return run(program, layout)
    with all_faults()[name].install():
        return run(program, layout)


def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> AbstractContextManager[Any]:
    """Inside, `owner.name` is what `make` makes of it; `owner` may be the name of a module."""
    owner = importlib.import_module(owner) if isinstance(owner, str) else owner
    return mock.patch.object(owner, name, make(getattr(owner, name)))


@contextlib.contextmanager
def together(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    """All contexts, as one."""
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
