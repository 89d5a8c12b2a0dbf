"""Graphs kept as JSON files, by content: planning from one needs neither the model nor torch."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from armillary.spec import ModelGraph, SpecError, reason

FIX = "trace the model anew with this version (armillary.models.trace), or use a family"


def cache_folder() -> Path:
    """Where graphs are kept: `ARMILLARY_CACHE`, or the user's cache folder.

    Source: XDG Base Directory Specification 0.8, `XDG_CACHE_HOME`.
    """
    own = os.environ.get("ARMILLARY_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "armillary"


def load_graph(path: Path) -> ModelGraph:
    """The graph in the file at `path`.

    Raises: `SpecError` where the file cannot be read, is no graph, or is one of another version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SpecError(
            str(path), f"cannot be read: {reason(error)}", "a model graph is a JSON file", FIX
        ) from None
    if not isinstance(values, dict) or "schema" not in values:
        raise SpecError(
            str(path), "no version of a model graph", "a model graph says its version", FIX
        )
    return ModelGraph.from_dict(values, path.name)


def key_of(parts: Iterable[str | bytes]) -> str:
    """A name for what `parts` say: the same for the same parts in the same order."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:32]


def remembered(folder: Path, key: str, make: Callable[[], ModelGraph]) -> ModelGraph:
    """The graph kept in `folder` under `key`, or what `make` gives, which is kept there.

    A file that is torn or of another version is made anew.
    """
    path = folder / f"{key}.graph.json"
    if path.is_file():
        try:
            return load_graph(path)
        except SpecError:
            pass
    graph = make()
    folder.mkdir(parents=True, exist_ok=True)
    graph.write(path)
    return graph
