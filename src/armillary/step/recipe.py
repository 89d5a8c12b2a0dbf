"""A scientist's case: a Python file of functions, found by path or by name, and checked."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from armillary.spec import SpecError, TrainSettings, likely, nearest
from armillary.spec.words import parse_value

REQUIRED = ("model", "data", "loss", "optimizer")
BUILT_IN = "armillary.recipes"
DATA_VARIABLE = "ARMILLARY_DATA"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A loaded recipe: the module's functions, and the options that a person may set.

    `options` are the keyword parameters of `model` and `data` with the values in force.
    """

    name: str
    source: Path
    module: ModuleType
    options: Mapping[str, Any]

    @property
    def word(self) -> str:
        """What names the recipe from any folder: a built-in name, or the source's absolute path."""
        return self.name if self.module.__name__.startswith(f"{BUILT_IN}.") else str(self.source)

    @property
    def loss(self) -> Callable[..., Any]:
        """The recipe's `loss(model, batch)`."""
        return self.module.loss

    @property
    def optimizer(self) -> Callable[..., Any]:
        """The recipe's `optimizer(params)`."""
        return self.module.optimizer

    def find(self, name: str) -> Callable[..., Any] | None:
        """The optional function `name` of the recipe, or None."""
        return getattr(self.module, name, None)

    def model(self) -> Any:
        """The recipe's module, built with the options that `model` takes."""
        model = self.module.model(**self.options_of(self.module.model))
        if isinstance(styles := getattr(self.module, "tensor", None), Mapping):
            from armillary.models.named_splits import name_splits

            name_splits(model, styles)
        return model

    def data(self) -> Mapping[str, Any]:
        """The recipe's splits by name, built with the options that `data` takes."""
        try:
            splits = self.module.data(**self.options_of(self.module.data))
        except OSError as error:
            raise SpecError(
                f"{self.source.name}.data",
                f"{error.filename or 'the data'}: {error.strerror or error}",
                "the recipe's data can be read",
                f"check the path, its permissions, and --data or {DATA_VARIABLE}",
            ) from error
        _check_splits(splits, self.source)
        return splits

    def options_of(self, function: Callable[..., Any]) -> dict[str, Any]:
        """The options in force that `function` takes, by name."""
        names = _option_defaults(function)
        return {name: self.options[name] for name in names if name in self.options}

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The recipe's own defaults of `TrainSettings`."""
        return getattr(self.module, "settings", {})

    @property
    def monitor(self) -> str:
        """What early stopping and the best checkpoint watch, such as `min:loss` or `max:auc`."""
        return getattr(self.module, "monitor", "min:loss")

    @property
    def files(self) -> dict[str, bytes]:
        """The recipe's source by file name: one file, or the Python files of a package."""
        return _files(self.source)

    @property
    def sha256(self) -> str:
        """One hash of the recipe's source."""
        return _sha256(self.files)


def source_sha256(word: str) -> str | None:
    """The hash that the recipe named `word` would have, None if there is none; nothing is run."""
    path = _path(word)
    if path is None:
        spec = importlib.util.find_spec(f"{BUILT_IN}.{word}") if word.isidentifier() else None
        path = Path(spec.origin) if spec is not None and spec.origin else None
    return _sha256(_files(path)) if path is not None and path.is_file() else None


def _files(source: Path) -> dict[str, bytes]:
    if source.name != "__init__.py":
        return {source.name: source.read_bytes()}
    return {path.name: path.read_bytes() for path in sorted(source.parent.glob("*.py"))}


def _sha256(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def data_option(recipe: Recipe, options: Mapping[str, Any], data: Path | None) -> dict[str, str]:
    """The option of the path to the data, from `data` or the environment; {} where `recipe` takes
    none, `options` say it already, or nobody does.
    """
    if "path" not in recipe.options or "path" in options:
        return {}
    chosen = data or os.environ.get(DATA_VARIABLE)
    return {"path": str(chosen)} if chosen else {}


def built_in_recipes() -> dict[str, str]:
    """The recipes that come with Armillary: name -> first line of the docstring."""
    package = importlib.import_module(BUILT_IN)
    return {
        entry.name: _first_line(entry.name)
        for entry in sorted(pkgutil.iter_modules(package.__path__), key=lambda e: e.name)
    }


def load_recipe(word: str, options: Mapping[str, str] | None = None) -> Recipe:
    """The recipe that `word` names: a path to a Python file or folder, or a built-in name.

    `options` are values in words, as a command line gives them.

    Raises: `SpecError` if there is no such recipe, it cannot be imported, lacks a function, or has
    no such option.
    """
    source, module = _import(word)
    for name in REQUIRED:
        if not callable(getattr(module, name, None)):
            raise SpecError(
                f"{source.name}.{name}",
                "missing",
                f"a recipe defines {', '.join(REQUIRED)}",
                f"add `def {name}({_PARAMETERS[name]}): ...`",
            )
    defaults = _option_defaults(module.model) | _option_defaults(module.data)
    for name in options or {}:
        if name not in defaults:
            raise SpecError(
                f"{source.stem}.{name}",
                "unknown setting or option",
                "an option is a parameter with a default of model() or data()",
                nearest(name, [*defaults, *TrainSettings.names()]),
            )
    given = {
        name: text
        if not isinstance(text, str)
        else parse_value(text, defaults[name], f"{source.stem}.{name}")
        for name, text in (options or {}).items()
    }
    return Recipe(name=_short_name(source), source=source, module=module, options=defaults | given)


_PARAMETERS = {"model": "", "data": "", "loss": "model, batch", "optimizer": "params"}


def _short_name(source: Path) -> str:
    return source.parent.name if source.name == "__init__.py" else source.stem


def _option_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _import(word: str) -> tuple[Path, ModuleType]:
    if not word:
        raise SpecError(
            "recipe",
            "missing",
            "training needs a recipe, or --resume and a run",
            "name a Python file, or one of `armillary recipes`",
        )
    path = _path(word)
    if path is None:
        return _import_built_in(word)
    if not path.is_file():
        raise SpecError(
            "recipe",
            f"no file {word}",
            "a recipe is a Python file or a built-in name",
            "check the path, or see `armillary recipes`",
        )
    source = path.resolve()
    spec = importlib.util.spec_from_file_location(
        f"armillary_recipe_{_short_name(source)}",
        source,
        submodule_search_locations=[str(source.parent)] if source.name == "__init__.py" else None,
    )
    assert spec is not None and spec.loader is not None
    beside = str(source.parent)
    if source.name != "__init__.py" and beside not in sys.path:
        sys.path.insert(0, beside)  # as `python recipe.py` would, for the modules beside it
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise SpecError(
            word,
            f"line {error.lineno}: {error.msg}",
            "a recipe is valid Python",
            "correct the line",
        ) from None
    except ImportError as error:
        raise SpecError(
            word,
            f"cannot be imported: {error}",
            "what a recipe imports is installed",
            f"install it, for example `pip install {error.name or 'the package'}`",
        ) from None
    return source, module


def _path(word: str) -> Path | None:
    """The file that `word` is the path of, None if it is a name."""
    path = Path(word)
    if path.is_dir() and (len(path.parts) > 1 or word not in built_in_recipes()):
        path = path / "__init__.py"
    return path if path.suffix == ".py" or len(path.parts) > 1 else None


def _import_built_in(word: str) -> tuple[Path, ModuleType]:
    known = built_in_recipes()
    if word not in known:
        raise SpecError(
            "recipe",
            f"unknown recipe {word!r}",
            "a recipe is a Python file or a built-in name",
            likely(word, known) or f"use one of {', '.join(known)}, or a path such as {word}.py",
        )
    try:
        module = importlib.import_module(f"{BUILT_IN}.{word}")
    except ImportError as error:
        raise SpecError(
            f"recipe.{word}",
            f"cannot be imported: {error}",
            "some recipes need an extra of Armillary",
            f"pip install 'armillary[{word}]'",
        ) from None
    assert module.__file__ is not None
    return Path(module.__file__), module


def _first_line(name: str) -> str:
    """The docstring's first line of a built-in recipe, read without importing it."""
    spec = importlib.util.find_spec(f"{BUILT_IN}.{name}")
    assert spec is not None and spec.origin is not None
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return (text or "").partition("\n")[0]


def _check_splits(splits: Any, source: Path) -> None:
    where = f"{source.name}.data"
    if not isinstance(splits, Mapping) or not {"train", "validation"} <= set(splits):
        found = sorted(splits) if isinstance(splits, Mapping) else type(splits).__name__
        raise SpecError(
            where,
            f"returned {found}",
            "data() returns a mapping with 'train', 'validation' and maybe 'test'",
            'return {"train": ..., "validation": ..., "test": ...}',
        )
    for name, split in splits.items():
        if not (hasattr(split, "__len__") and hasattr(split, "__getitem__")):
            raise SpecError(
                f"{where}[{name!r}]",
                type(split).__name__,
                "a split is a map-style dataset with __len__ and __getitem__",
                "wrap it in a torch.utils.data.Dataset, or pass a list",
            )
        if len(split) == 0:
            raise SpecError(
                f"{where}[{name!r}]",
                "no samples",
                "a split holds samples",
                "check the data's path and its filters",
            )
