"""Is everything the package imports declared in pyproject.toml, and pinned where CI installs it?"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from tests.shape.reading import (
    REPOSITORY,
    Source,
    all_sources,
    imported_modules,
    source_from,
    statements_at_import,
)


def normalised(requirement: str) -> str:
    """The distribution's name of a requirement, in the form that compares equal."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0]).lower()


def declared() -> tuple[set[str], set[str]]:
    """(distributions of the plain package, those of any extra)."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    plain = {normalised(one) for one in project["dependencies"]}
    extras = project["optional-dependencies"].values()
    return plain, {normalised(one) for extra in extras for one in extra} - {"armillary"}


# What imports are called whose distribution has another name and may not be installed here.
NAMED_OTHERWISE = {"mlflow": ["mlflow-skinny"], "pynvml": ["nvidia-ml-py"]}
# Rooms where a file may import an extra at its top, if importing the room does not load that file
# (test_torch_free.py holds that, in a fresh interpreter).
MAY_BE_WRITTEN_FOR_AN_EXTRA = {"feeds", "recipes"}


def undeclared(
    source: Source, plain: set[str], extra: set[str], distributions: dict[str, list[str]]
) -> list[str]:
    """Imports of distributions that the plain package (at module level) or any extra lacks."""
    at_import = set(map(id, statements_at_import(source.tree.body)))
    if source.room in MAY_BE_WRITTEN_FOR_AN_EXTRA:
        at_import = set()
    found = []
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        package = imported_modules(source, node)[0].split(".")[0]
        if package in sys.stdlib_module_names or package == "armillary":
            continue
        owners = {normalised(one) for one in distributions.get(package, [package])}
        allowed = plain if id(node) in at_import else plain | extra
        if not owners & allowed:
            found.append(f"{source.path}:{node.lineno}: {package} is not declared for this use")
    return found


def test_every_import_is_declared() -> None:
    """At a file's top what the plain package installs; what an extra brings, in functions."""
    plain, extra = declared()
    distributions = {**NAMED_OTHERWISE, **packages_distributions()}
    found = [
        line for source in all_sources() for line in undeclared(source, plain, extra, distributions)
    ]
    assert found == []


def test_the_plain_package_is_pinned() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = {normalised(line) for line in lines if "==" in line}
    plain, _ = declared()
    assert plain <= pins
    assert "torch==2.13.0" in lines


def test_an_undeclared_import_is_caught() -> None:
    distributions = {"sklearn": ["scikit-learn"], "numpy": ["numpy"]}
    for text, is_caught in {
        "import numpy.linalg": False,
        "import json": False,
        "import sklearn.metrics": True,
        "def f():\n    import sklearn": False,
        "def f():\n    import unheard_of": True,
        "from . import x": False,
    }.items():
        source = source_from("train/toy.py", text)
        assert bool(undeclared(source, {"numpy"}, {"scikit-learn"}, distributions)) == is_caught
    source = source_from("feeds/toy.py", "import sklearn")
    assert not undeclared(source, {"numpy"}, {"scikit-learn"}, distributions)
