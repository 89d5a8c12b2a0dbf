"""Does importing a file only define things?

A light check on statements that run at import: no loop or `with`, no bare call (the door's own
`app.add_typer(...)` apart), and no assignment whose value reads the world or changes a global.
"""

from __future__ import annotations

import ast

import pytest

from tests.shape.reading import Source, all_sources, source_from, statements_at_import

WORDS_OF_WORK = {
    "open", "print", "input", "read_text", "read_bytes", "read_csv", "write_text", "mkdir",
    "load", "run", "Popen", "check_output", "system", "getenv", "environ", "urlopen", "connect",
    "manual_seed", "seed", "set_num_threads", "set_default_dtype", "set_float32_matmul_precision",
    "is_available", "device_count", "init_process_group", "basicConfig", "filterwarnings",
    "simplefilter", "signal", "now", "time", "perf_counter", "cwd", "exists", "is_file", "glob",
}  # fmt: skip
LOOPS = ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Delete | ast.Raise


def is_work(value: ast.AST) -> bool:
    """Whether an expression calls or reads something that touches the world."""
    for node in ast.walk(value):
        if isinstance(node, ast.Lambda):
            return False
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in WORDS_OF_WORK:
                return True
        if isinstance(node, ast.Attribute) and node.attr == "environ":
            return True
    return False


def is_registration(source: Source, node: ast.Expr) -> bool:
    """Whether a bare call hands one part of the command line to another."""
    call = node.value
    return (
        source.room == "cli"
        and isinstance(call, ast.Call)
        and isinstance(call.func, ast.Call | ast.Attribute)
        and ast.unparse(call.func).startswith("app.")
    )


def work_at_import(source: Source) -> list[str]:
    """Statements at module or class level that do more than define."""
    found: list[tuple[ast.stmt, str]] = []
    for node in statements_at_import(source.tree.body):
        value = getattr(node, "value", None)
        if isinstance(node, LOOPS):
            found.append((node, "runs at import"))
        elif isinstance(node, ast.Expr):
            if not isinstance(node.value, ast.Constant) and not is_registration(source, node):
                found.append((node, "calls at import"))
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and value is not None:
            if is_work(value):
                found.append((node, "reads or changes the world at import"))
        elif isinstance(node, ast.If) and is_work(node.test):
            found.append((node, "decides at import by what it finds"))
    return [f"{source.path}:{node.lineno}: {what}" for node, what in found]


def test_importing_a_file_does_nothing() -> None:
    assert [line for source in all_sources() for line in work_at_import(source)] == []


@pytest.mark.parametrize(
    "text",
    [
        "torch.manual_seed(0)",
        "for x in range(3): pass",
        "with open('x') as f: pass",
        "TABLE = Path('x').read_text()",
        "HOME = os.environ['HOME']",
        "if torch.cuda.is_available():\n    DEVICE = 'cuda'",
        "try:\n    setup()\nexcept ValueError:\n    pass",
        "class C:\n    started = time.time()",
        "print('hello')",
        "app.add_typer(other)",
    ],
)
def test_work_at_import_is_caught(text: str) -> None:
    assert work_at_import(source_from("train/toy.py", text))


@pytest.mark.parametrize(
    "text",
    [
        '"""Says."""\nimport os\nX = 3\nY: int = max(1, 2)\n__all__ = ["X"]',
        "def f():\n    print('hello')\n    for x in (): pass",
        "class C:\n    table = {}\n    def f(self): open('x')",
        "try:\n    import torch\nexcept ImportError:\n    torch = None",
        "if TYPE_CHECKING:\n    import torch",
        "if __name__ == '__main__':\n    main()",
        "now = field(default_factory=lambda: time.time())",
    ],
)
def test_definitions_are_not_work(text: str) -> None:
    assert work_at_import(source_from("train/toy.py", text)) == []


def test_the_door_may_join_its_parts() -> None:
    assert work_at_import(source_from("cli.py", "app.add_typer(other)")) == []
