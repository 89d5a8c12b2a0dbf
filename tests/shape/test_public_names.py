"""Does every public name say what it gives, and every public signature its types?"""

from __future__ import annotations

import ast

import pytest

from tests.shape.reading import Source, all_sources, source_from

# Names whose meaning is fixed by the interface they fill, so that a docstring would repeat it:
# a module's forward, what a recipe is asked for, and (read from the source) a Protocol's methods.
MEANING_FIXED_ELSEWHERE = {"forward"}
ASKED_OF_A_RECIPE = {
    "model", "data", "loss", "optimizer", "scheduler", "collate", "predict", "metrics", "rivals",
    "groups", "figures", "read", "rows",
}  # fmt: skip
DECORATORS_THAT_EXCUSE = {"overload", "override", "setter"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(source: Source) -> list[tuple[str, Definition, bool]]:
    """(name, node, whether it is a method) of public classes, functions and methods."""
    if any(part.startswith("_") and part != "__init__" for part in source.module.split(".")):
        return []
    found: list[tuple[str, Definition, bool]] = []
    for node in source.tree.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        found.append((node.name, node, False))
        if isinstance(node, ast.ClassDef):
            found += [
                (f"{node.name}.{method.name}", method, True)
                for method in node.body
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                and not method.name.startswith("_")
            ]
    return found


def promised(sources: list[Source]) -> set[tuple[str, str]]:
    """(room, method) of the methods that a Protocol of the room documents."""
    return {
        (source.room, method.name)
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).split("[")[0].endswith("Protocol") for base in node.bases)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }


def excused(source: Source, node: Definition, promises: set[tuple[str, str]]) -> bool:
    """Whether a decorator or the name says that the docstring stands elsewhere."""
    names = {getattr(mark, "attr", getattr(mark, "id", "")) for mark in node.decorator_list}
    return (
        bool(names & DECORATORS_THAT_EXCUSE)
        or node.name in MEANING_FIXED_ELSEWHERE
        or (source.room, node.name) in promises
        or (source.room == "recipes" and node.name in ASKED_OF_A_RECIPE)
    )


def undocumented(source: Source, promises: set[tuple[str, str]]) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""
    found = [
        f"{source.path}:{node.lineno}: {name} has no docstring"
        for name, node, _ in public_definitions(source)
        if not excused(source, node, promises) and not ast.get_docstring(node)
    ]
    if source.tree.body and not ast.get_docstring(source.tree):
        found.append(f"{source.path}:1: the file does not say what it is")
    return found


def untyped(source: Source) -> list[str]:
    """Public functions and methods with a parameter or a result without a type."""
    found = []
    for name, node, is_method in public_definitions(source):
        if isinstance(node, ast.ClassDef):
            continue
        marks = {getattr(mark, "id", "") for mark in node.decorator_list}
        arguments = [*node.args.posonlyargs, *node.args.args]
        if is_method and "staticmethod" not in marks:
            arguments = arguments[1:]
        arguments += node.args.kwonlyargs
        arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
        missing = [argument.arg for argument in arguments if argument.annotation is None]
        missing += ["the result"] if node.returns is None else []
        if missing:
            found.append(f"{source.path}:{node.lineno}: {name}: no type for {', '.join(missing)}")
    return found


def test_every_public_name_has_a_docstring() -> None:
    sources = all_sources()
    promises = promised(sources)
    assert [line for source in sources for line in undocumented(source, promises)] == []


def test_every_public_signature_is_typed() -> None:
    assert [line for source in all_sources() for line in untyped(source)] == []


@pytest.mark.parametrize(
    ("text", "is_documented", "is_typed"),
    [
        ('"""F."""\ndef f(x: int) -> int:\n    """X."""\n', True, True),
        ('"""F."""\ndef f(x: int) -> int: ...\n', False, True),
        ('def f(x: int) -> int:\n    """X."""\n', False, True),
        ('"""F."""\ndef f(x) -> int:\n    """X."""\n', True, False),
        ('"""F."""\ndef f(x: int):\n    """X."""\n', True, False),
        ('"""F."""\ndef _f(x): ...\n', True, True),
        (
            '"""F."""\nclass C:\n    """C."""\n    def f(self, *rest) -> int:\n        """X."""\n',
            True,
            False,
        ),
        ('"""F."""\nclass C:\n    """C."""\n    def f(self) -> int: ...\n', False, True),
        (
            '"""F."""\nclass C:\n    """C."""\n    def forward(self, x: int) -> int: ...\n',
            True,
            True,
        ),
        ('"""F."""\nclass C:\n    def _f(self): ...\n', False, True),
    ],
)
def test_the_rules_can_fail(text: str, is_documented: bool, is_typed: bool) -> None:
    source = source_from("spec/toy.py", text)
    assert (not undocumented(source, set())) == is_documented
    assert (not untyped(source)) == is_typed


def test_a_protocol_documents_its_methods_for_its_room() -> None:
    door = source_from("axes/door.py", 'class D(Protocol):\n    def f(self):\n        """X."""')
    other = '"""F."""\nclass C:\n    """C."""\n    def f(self) -> int: ...'
    promises = promised([door])
    assert promises == {("axes", "f")}
    assert not undocumented(source_from("axes/toy.py", other), promises)
    assert undocumented(source_from("train/toy.py", other), promises)


def test_only_what_is_asked_of_a_recipe_is_excused() -> None:
    text = '"""F."""\ndef model() -> int: ...\ndef windows() -> int: ...'
    assert undocumented(source_from("recipes/toy.py", text), set()) == [
        "recipes/toy.py:3: windows has no docstring"
    ]
