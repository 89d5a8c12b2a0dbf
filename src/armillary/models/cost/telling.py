"""All that a trace depends on, in words, so that a graph can be kept by it."""

import inspect
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from armillary.models.cost.replay import structure

HIDDEN = ("_armillary_named_splits", "chain")
"""What a recipe tells of its model beside its parts."""


PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def told_of(module: nn.Module, loss: Any, batches: Any, num_samples: int) -> Iterator[str | bytes]:
    """Versions, the model's structure and code, the loss' code, and the shapes of the batches."""
    yield f"torch {torch.__version__}"
    yield f"armillary {_version()}"
    yield f"{num_samples} samples"
    for leaf in tree_leaves(batches):
        is_tensor = isinstance(leaf, torch.Tensor)
        yield f"{tuple(leaf.shape)} {leaf.dtype}" if is_tensor else repr(leaf)
    yield repr(structure(module, _plain))
    yield from (repr(vars(module).get(name)) for name in HIDDEN)
    yield from _paths_of_shared(module)
    for path in sorted({_file(type(part)) for part in module.modules()} | {_file(loss)}):
        if path and not path.startswith(str(Path(torch.__file__).parent)):
            yield Path(path).read_bytes()
    yield getattr(loss, "__qualname__", repr(type(loss)))
    yield from (file.read_bytes() for file in sorted(Path(__file__).parents[1].rglob("*.py")))


def _plain(value: Any) -> str:
    """A value in words that are the same in another process: of a function or class its name."""
    if isinstance(value, (tuple, list, set, frozenset)):
        return f"({', '.join(map(_plain, value))})"
    if isinstance(value, dict):
        return f"({', '.join(f'{_plain(k)}: {_plain(v)}' for k, v in value.items())})"
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    named = getattr(value, "__qualname__", None)
    if named is not None or isinstance(value, PLAIN):
        return named or repr(value)
    fields = vars(value) if hasattr(value, "__dict__") else {}
    return f"{type(value).__qualname__} { {k: v for k, v in fields.items() if type(v) in PLAIN} }"


def _paths_of_shared(module: nn.Module) -> Iterator[str]:
    """Which names are one parameter."""
    groups: dict[int, list[str]] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(path)
    yield from (" = ".join(paths) for paths in groups.values() if len(paths) > 1)


def _file(kind: Any) -> str:
    """The file that a class or function is written in, "" where there is none."""
    try:
        path = inspect.getsourcefile(kind) or ""
    except TypeError:
        return ""
    return path if Path(path).is_file() else ""


def _version() -> str:
    try:
        return version("armillary")
    except PackageNotFoundError:
        return "unknown"
