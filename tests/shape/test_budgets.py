"""Is every function and file short enough to be read in one sitting, and named for what it is?"""

from __future__ import annotations

import ast
import re

import pytest

from tests.shape.reading import Source, all_sources, functions, source_from

# Ratchets: these may go down, never up.
FUNCTION_LINES = 60
FILE_LINES = 400
NAMES_OF_NOTHING = re.compile(
    r"^_?(utils?|helpers?|managers?|misc|common|stuff)$|_(utils?|helpers?|manager)$"
)
CLASSES_OF_NOTHING = re.compile(r"(Utils?|Helpers?|Manager)$")


def over_budget(source: Source) -> list[str]:
    """Functions and files that are too long."""
    found = [
        f"{source.path}:{node.lineno}: {node.name}: {length} lines, the budget is {FUNCTION_LINES}"
        for node in functions(source.tree)
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]
    length = len(source.text.splitlines())
    if length > FILE_LINES:
        found.append(f"{source.path}: {length} lines, the budget is {FILE_LINES}")
    return found


def named_for_nothing(source: Source) -> list[str]:
    """Files and classes whose name says no concept."""
    parts = source.path.removesuffix(".py").split("/")
    found = [
        f"{source.path}: {part} names no concept" for part in parts if NAMES_OF_NOTHING.search(part)
    ]
    found += [
        f"{source.path}:{node.lineno}: class {node.name} names no concept"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and CLASSES_OF_NOTHING.search(node.name)
    ]
    return found


def test_functions_and_files_keep_their_budgets() -> None:
    assert [line for source in all_sources() for line in over_budget(source)] == []


def test_files_and_classes_are_named_for_a_concept() -> None:
    assert [line for source in all_sources() for line in named_for_nothing(source)] == []


@pytest.mark.parametrize("lines", [FUNCTION_LINES, FUNCTION_LINES + 1])
def test_the_function_budget_is_exact(lines: int) -> None:
    source = source_from("spec/toy.py", "def f():\n" + "    pass\n" * (lines - 1))
    assert bool(over_budget(source)) == (lines > FUNCTION_LINES)


@pytest.mark.parametrize("lines", [FILE_LINES, FILE_LINES + 1])
def test_the_file_budget_is_exact(lines: int) -> None:
    assert bool(over_budget(source_from("spec/toy.py", "x = 1\n" * lines))) == (lines > FILE_LINES)


def test_a_name_of_nothing_is_caught() -> None:
    assert named_for_nothing(source_from("train/utils.py", ""))
    assert named_for_nothing(source_from("train/mesh_helpers.py", ""))
    assert named_for_nothing(source_from("train/mesh.py", "class MeshManager: pass"))
    assert not named_for_nothing(source_from("train/mesh.py", "class Mesh: pass"))
