"""What is planned for: a family in words, a stored graph, or a recipe, traced once and kept."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from armillary.models import families, references
from armillary.spec import ModelGraph, SpecError, likely, nearest, write_atomically
from armillary.step.recipe import BUILT_IN, DATA_VARIABLE, built_in_recipes

NUM_TRACED = 2
"""Samples of the batch that a recipe is traced with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A model as a graph, and what its recipe says besides; 0 where there is no recipe.

    `num_samples` are those of the training split.
    """

    name: str
    graph: ModelGraph
    global_batch_size: int = 0
    num_samples: int = 0

    @property
    def sha256(self) -> str:
        """One hash of the graph, as it is when it has been written and read."""
        read = ModelGraph.from_dict(self.graph.to_dict())
        return hashlib.sha256(json.dumps(read.to_dict()).encode()).hexdigest()


def find_target(
    word: str, options: Mapping[str, str] | None = None, data: Path | None = None
) -> Target:
    """The target that `word` names: `gpt:layers=...`, `resnet50`, a file of a graph, or a recipe.

    `options` are those of a recipe, in words, and `data` where its data lie. Only a recipe that
    was not traced before imports torch.

    Raises: `SpecError` if it is none of these, or cannot be traced.
    """
    if not word:
        raise SpecError(
            "target",
            "missing",
            "a plan is of a model: a family with its sizes, a recipe, or a JSON file of a graph",
            "name one, such as `armillary plan gpt` or "
            "gpt:layers=24,hidden=2048,heads=16,seq=2048,vocab=51200",
        )
    prefix, colon, _ = word.partition(":")
    if colon and not Path(word).exists():
        _refuse_options(word, options, data)
        known = families.discover()
        if prefix.strip() not in known:
            raise SpecError(
                "target",
                f"unknown family {prefix!r}",
                "a target is a family with its sizes, a recipe, or a JSON file of a graph",
                nearest(prefix.strip(), known),
            )
        return Target(name=word, graph=families.parse(word))
    if word in references.names():
        _refuse_options(word, options, data)
        return Target(name=word, graph=references.load(word))
    if word.endswith(".json"):
        _refuse_options(word, options, data)
        return Target(name=Path(word).stem, graph=ModelGraph.read(Path(word)))
    if word.isidentifier() and word not in built_in_recipes():
        _refuse_unknown(word)
    return _of_recipe(word, dict(options or {}), data)


def _refuse_unknown(word: str) -> NoReturn:
    """Refuse a name that is no recipe's and no stored graph's."""
    recipes, kinds = ", ".join(built_in_recipes()), ", ".join(families.discover())
    known = [*references.names(), *families.discover(), *built_in_recipes()]
    raise SpecError(
        "target",
        f"nothing is called {word!r}",
        "a target is a family with its sizes, a recipe, a stored graph, or a JSON file of a graph",
        likely(word, known)
        or f"use a recipe ({recipes}), a family ({kinds}) with its sizes, or a stored graph "
        f"({', '.join(references.names()[:6])}, ...)",
    )


def _refuse_options(word: str, options: Mapping[str, str] | None, data: Path | None) -> None:
    if options or data:
        raise SpecError(
            "--set" if options else "--data",
            f"given with {word}, which is no recipe",
            "options and data are those of a recipe",
            "leave it out, or name a recipe",
        )


def _of_recipe(word: str, options: dict[str, str], data: Path | None) -> Target:
    """The recipe's graph: kept from before if recipe, options and what reads models are the same.

    Data may change without a trace, as long as their shapes do not; a path is an option.
    """
    chosen = data or os.environ.get(DATA_VARIABLE)
    sources = _sources(word)
    if not sources:
        return _traced(word, options, chosen)
    said = json.dumps([word, options, str(chosen or "")], sort_keys=True)
    digest = hashlib.sha256(said.encode())
    for path in [*sources, *_readers()]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    kept = _cache_folder() / f"{digest.hexdigest()}.json"
    if kept.is_file():
        try:
            return _from_dict(json.loads(kept.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, SpecError):
            pass  # torn, or of another version: traced anew
    target = _traced(word, options, chosen)
    _keep(kept, target)
    return target


def _sources(word: str) -> list[Path]:
    """The files of a recipe, found without importing it; none if there is no such recipe."""
    path = Path(word)
    if path.is_file():
        return [path]
    if (path / "__init__.py").is_file():
        return sorted(path.glob("*.py"))
    if not word.isidentifier():
        return []
    found = find_spec(f"{BUILT_IN}.{word}")
    if found is None or found.origin is None:
        return []
    origin = Path(found.origin)
    return sorted(origin.parent.glob("*.py")) if origin.name == "__init__.py" else [origin]


def _readers() -> list[Path]:
    """The files that make a graph of a module: with others, the graph would be another."""
    found = find_spec("armillary.models")
    assert found is not None and found.origin is not None
    room = Path(found.origin).parent
    return [*sorted(room.rglob("*.py")), room.parent / "spec" / "model_graph.py"]


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "armillary" / "graphs"


def _keep(path: Path, target: Target) -> None:
    """Keep the graph for the next time, where there is room to write."""
    values = {
        "name": target.name,
        "graph": target.graph.to_dict(),
        "global_batch_size": target.global_batch_size,
        "num_samples": target.num_samples,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(values))
    except OSError:
        pass


def _from_dict(values: Mapping[str, Any]) -> Target:
    return Target(
        name=str(values["name"]),
        graph=ModelGraph.from_dict(values["graph"]),
        global_batch_size=int(values["global_batch_size"]),
        num_samples=int(values["num_samples"]),
    )


def _traced(word: str, options: Mapping[str, str], data: str | Path | None) -> Target:
    """The recipe's model traced with the first samples of its training split."""
    from dataclasses import replace

    from armillary.feeds import Share
    from armillary.models import trace
    from armillary.models.deferred import NotDeferrable, defer
    from armillary.spec import TrainSettings
    from armillary.step.batches import Feed
    from armillary.step.recipe import load_recipe

    recipe = load_recipe(word, options)
    if data is not None and "path" in recipe.options and "path" not in options:
        recipe = load_recipe(word, {**options, "path": str(Path(data).resolve())})
    split = recipe.data()["train"]
    feed = Feed(split, batch_size=NUM_TRACED, share=Share(), collate=recipe.find("collate"))
    batch, num_samples = feed.example()
    try:
        module = defer(recipe.model).module
    except NotDeferrable:
        module = recipe.model()
    graph = trace(module, recipe.loss, batch, num_samples)
    settings = TrainSettings.from_dict(dict(recipe.defaults), f"{recipe.name}.settings")
    return Target(
        name=recipe.name,
        graph=replace(graph, name=recipe.name),
        global_batch_size=settings.global_batch_size,
        num_samples=len(split),
    )
