"""Does any verb name an axis? Then a new axis could not be added as one file.

A verb may ask every axis the same question; it may not know one by name. In the verbs' rooms and
in the door this forbids:
- importing one axis' file (`armillary.axes.sharded`);
- the exact string "sharded", "pipeline", "tensor", "sequence" or "expert" anywhere but in a
  docstring: none of these five is a word the verbs have another use for as a bare string;
- "data" (a folder, a phase of a step, an option: an ordinary word) only where it is used as an
  axis: subscript, `.get`, membership or comparison on something named for axes (`degrees`,
  `mesh`, `axis`, ...), an argument named so, or an argument of a mesh's own methods;
- an attribute of that name on such a thing (`layout.sharded`).
Sentences shown to people ("--layout data=2,sharded=2") are not touched.
"""

from __future__ import annotations

import ast
import re

import pytest

from tests.shape.reading import (
    Source,
    all_sources,
    docstrings,
    imported_modules,
    source_from,
)

VERBS = {"cli", "plan", "verify", "rehearse", "train", "audit", "serve"}
AXES = {"data", "sharded", "pipeline", "tensor", "sequence", "expert"}
ONLY_AXES = AXES - {"data"}
NAMED_FOR_AXES = re.compile(
    r"(^|_)(degrees?|mesh|submesh|layouts?|axis|axes|dim_names|borrows)(_|$)"
)
METHODS_TAKING_AN_AXIS = {"get_group", "get_local_rank", "get_all_groups", "_get_mesh_dim_by_name"}


def identifier(node: ast.AST | None) -> str:
    """The last name of an expression: `degrees` of `run.layout.degrees` and of `degrees()`."""
    if isinstance(node, ast.Call):
        return identifier(node.func)
    if isinstance(node, ast.Subscript):
        return identifier(node.value)
    return str(getattr(node, "attr", getattr(node, "id", "")))


def is_for_axes(node: ast.AST | None) -> bool:
    """Whether an expression is named for axes, their degrees, a layout or a mesh."""
    return bool(NAMED_FOR_AXES.search(identifier(node)))


def strings(node: ast.AST | None) -> list[ast.Constant]:
    """The string constants of an expression that is one, or a tuple, list, set or dict of them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node]
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return [one for element in node.elts for one in strings(element)]
    if isinstance(node, ast.Dict):
        return [one for key in node.keys for one in strings(key)]
    return []


def strings_used_as_axis(node: ast.AST) -> list[ast.Constant]:
    """String constants which one node treats as the name of an axis."""
    if isinstance(node, ast.Subscript) and is_for_axes(node.value):
        return strings(node.slice)
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return [one for side in sides for one in strings(side) if any(map(is_for_axes, sides))]
    if isinstance(node, ast.Assign) and any(map(is_for_axes, node.targets)):
        return strings(node.value)
    if isinstance(node, ast.AnnAssign) and is_for_axes(node.target):
        return strings(node.value)
    if isinstance(node, ast.arguments):
        named = [*node.posonlyargs, *node.args][-len(node.defaults) :] if node.defaults else []
        defaults: list[tuple[ast.arg, ast.expr | None]] = [
            *zip(named, node.defaults, strict=True),
            *zip(node.kwonlyargs, node.kw_defaults, strict=True),
        ]
        return [
            one
            for argument, value in defaults
            if NAMED_FOR_AXES.search(argument.arg)
            for one in strings(value)
        ]
    if isinstance(node, ast.Call):
        found = [
            one
            for word in node.keywords
            if NAMED_FOR_AXES.search(word.arg or "")
            for one in strings(word.value)
        ]
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if method in METHODS_TAKING_AN_AXIS or is_for_axes(owner) or is_for_axes(node.func):
            found += [one for argument in node.args for one in strings(argument)]
        return found
    return []


def axes_named(source: Source) -> list[str]:
    """Every place where a verb names an axis."""
    if source.room not in VERBS:
        return []
    said = docstrings(source.tree)
    found: set[tuple[int, str]] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.stmt):
            for name in imported_modules(source, node):
                if name.startswith("armillary.axes.") and name.split(".")[2] in AXES:
                    found.add((node.lineno, f"imports {name}"))
        if isinstance(node, ast.Constant) and node.value in ONLY_AXES and id(node) not in said:
            found.add((node.lineno, f'says "{node.value}"'))
        if isinstance(node, ast.Attribute) and node.attr in AXES and is_for_axes(node.value):
            found.add((node.lineno, f"reads .{node.attr} of {identifier(node.value)}"))
        for one in strings_used_as_axis(node):
            if one.value in AXES:
                found.add((one.lineno, f'says "{one.value}"'))
    return [f"{source.path}:{line}: {what}" for line, what in sorted(found)]


def test_no_verb_names_an_axis() -> None:
    assert [line for source in all_sources() for line in axes_named(source)] == []


@pytest.mark.parametrize(
    "text",
    [
        "from armillary.axes.sharded import Sharded",
        "from armillary.axes import data",
        "import armillary.axes.tensor",
        "def f():\n    from armillary.axes import expert",
        'if name == "sharded": pass',
        'table = {"pipeline": 1}',
        'degree = layout.degrees["data"]',
        'degree = degrees.get("data", 1)',
        'has = "data" in layout.degrees',
        'has = axis == "data"',
        'has = axis.name == "data" or axis_name == "data"',
        'group = mesh["data"].get_group()',
        'group = mesh["data", "x"]',
        'rank = world.get_local_rank("data")',
        'm = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "x"))',
        'layout = Layout(degrees={"data": 2})',
        "degree = layout.data",
        'axes = ["data"]',
        'axes: list[str] = ["data"]',
        'def f(x, axis="data"): pass',
        'def f(*, axis="data"): pass',
    ],
)
def test_naming_an_axis_is_caught(text: str) -> None:
    assert axes_named(source_from("train/toy.py", text))
    assert not axes_named(source_from("axes/toy.py", text))


@pytest.mark.parametrize(
    "text",
    [
        'phases_s = {"data": 0.1, "forward": 0.2}',
        'seconds = phases_s["data"]',
        'splits = recipe.data(path="data")',
        'folder = root / "data"',
        'option = typer.Option("--data", help="--layout data=2,sharded=2")',
        '"""A module about sharded and tensor."""\ndef f():\n    "tensor"',
        'message = f"the tensor {name} is not finite"',
        "for axis in axes.discover(): module = axis.apply(module, mesh, layout)",
        "degree = layout.degrees[axis.name]",
        "from armillary.axes import discover",
        "from armillary import axes",
    ],
)
def test_an_ordinary_word_is_not_an_axis(text: str) -> None:
    assert axes_named(source_from("train/toy.py", text)) == []
