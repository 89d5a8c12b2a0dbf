"""Families of models as numbers, by their sizes alone: one file = one family, none needs torch.

`parse("gpt:layers=96,hidden=12288,heads=96,seq=2048,vocab=51200")` is the graph that `models.trace`
would give of such a module. A file of this room that defines `FAMILY` is found by discovery: a
frozen dataclass whose fields are the family's sizes, with a `graph` method.
"""

import importlib
import pkgutil
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, Protocol

from armillary.spec import ModelGraph, SpecError, nearest
from armillary.spec.words import parse_assignments, parse_value

__all__ = ["Family", "discover", "parse"]
LARGEST = 10**9
"""No size of a model is larger, so a slip of the keyboard is refused."""


class Family(Protocol):
    """Sizes of a model, each a field, and the graph that they make."""

    def graph(self, name: str) -> ModelGraph:
        """The model's graph, under `name`."""
        ...


@cache
def discover() -> dict[str, type[Family]]:
    """The families by the name of their file."""
    found: dict[str, type[Family]] = {}
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        if hasattr(module, "FAMILY"):
            found[entry.name] = module.FAMILY
    return found


def parse(text: str) -> ModelGraph:
    """The graph of a family in words: its name, a colon, and its sizes as `name=value`.

    Raises: `SpecError` on an unknown family or size, a size that is missing, is no positive number
    or does not fit the others.

    Example:
        >>> parse("gpt:layers=96,hidden=12288,heads=96,seq=2048,vocab=51200").num_parameters
        174615846912
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    families = discover()
    if name not in families:
        raise SpecError(
            "model",
            f"unknown family {name!r}",
            f"the families are {', '.join(sorted(families))} (models/families/)",
            nearest(name, families),
        )
    words = parse_assignments([word for word in rest.split(",") if word.strip()], name)
    return families[name](**_values(name, families[name], words)).graph(text.strip())


def _values(name: str, family: type[Family], words: dict[str, str]) -> dict[str, Any]:
    known: dict[str, Field[Any]] = {f.name: f for f in fields(family)}  # type: ignore[arg-type]
    values = {}
    for word, text in words.items():
        if word not in known:
            raise SpecError(
                f"{name}.{word}",
                "unknown size",
                f"the sizes of {name} are {', '.join(known)} (models/families/{name}.py)",
                nearest(word, known),
            )
        values[word] = _value(f"{name}.{word}", text, known[word])
    missing = [f.name for f in known.values() if f.default is MISSING and f.name not in values]
    if missing:
        raise SpecError(
            f"{name}.{missing[0]}",
            "not given",
            f"{name} needs {', '.join(f.name for f in known.values() if f.default is MISSING)}",
            f"add {missing[0]}=",
        )
    return values


def _value(where: str, text: str, known: Field[Any]) -> Any:
    like = 1 if known.default is MISSING else known.default
    value = parse_value(text, like, where)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    can_be_none = isinstance(value, float) or known.default == 0
    least = known.metadata.get("least", 0 if can_be_none else 1)
    most = 1 if isinstance(value, float) else LARGEST
    if not least <= value <= most:
        usual = 16 if known.default in (MISSING, 0) else known.default
        raise SpecError(where, text, f"it is {least} to {most:,}", f"use a value such as {usual}")
    return value
