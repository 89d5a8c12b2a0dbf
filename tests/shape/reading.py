"""What the shape tests read: the source as syntax trees, and the repository's own file list."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "armillary"


@dataclass(frozen=True)
class Source:
    """One Python file: its path relative to the package, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The room it stands in: the first folder, or the file's own name at the top."""
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def module(self) -> str:
        """Its dotted name, such as `armillary.spec.layout`."""
        parts = ["armillary", *self.path.removesuffix(".py").split("/")]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_from(path: str, text: str) -> Source:
    """A source from its text, as the tests of the tests write them."""
    return Source(path=path, text=text, tree=ast.parse(text, filename=path))


def all_sources() -> list[Source]:
    """Every Python file of the package."""
    return [
        source_from(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def repository_files() -> list[str]:
    """Every file of the repository that git does not ignore, relative to its root."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
        text=True,
    )
    names = sorted(set(listing.stdout.split("\0")) - {""})
    return [name for name in names if (REPOSITORY / name).is_file()]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function in a tree, methods and inner functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def docstrings(tree: ast.AST) -> set[int]:
    """The identities of the string constants that are docstrings or bare strings."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def imported_modules(source: Source, node: ast.stmt) -> list[str]:
    """The dotted names an import statement could load, relative ones made absolute.

    `from a import b` gives both `a` and `a.b`, as b may be a module of a.
    """
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        is_package = source.path.endswith("__init__.py")
        parents = source.module.split(".")
        kept = len(parents) - node.level + (1 if is_package else 0)
        base = ".".join(parents[:kept] + ([base] if base else []))
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def is_type_checking(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, whose body never runs."""
    if not isinstance(node, ast.If):
        return False
    test = node.test
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def statements_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those inside if, try and with included."""
    for node in body:
        if is_type_checking(node) or is_main_guard(node):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from statements_at_import(node.body)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from statements_at_import(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from statements_at_import(handler.body)


def is_main_guard(node: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__":`."""
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and getattr(node.test.left, "id", None) == "__name__"
    )
