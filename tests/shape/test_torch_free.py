"""Do the rooms and words that need no torch stay free of it?

Three rules, each with its own check:
- spec, audit and cli never name torch (import-linter's contract `torch-free`);
- the rooms below name it inside functions only (read from the syntax here);
- importing them, and asking for help, really loads none of it (a fresh interpreter here).
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shape.reading import (
    PACKAGE,
    Source,
    all_sources,
    imported_modules,
    source_from,
    statements_at_import,
)

MAY_IMPORT_TORCH_AT_MODULE_LEVEL = {"models", "step", "verify", "train", "serve", "recipes"}
# A room in a room that runs the modules of a model; the rest of its room plays numbers.
RUNS_PROGRAMS = "rehearse/program/"
LAZY_MODULES = [
    "armillary",
    "armillary.spec",
    "armillary.core",
    "armillary.machines",
    "armillary.feeds",
    "armillary.axes",
    "armillary.audit",
    "armillary.plan",
    "armillary.rehearse",
    "armillary.cli",
    "armillary.train.folder.run_folder",
]
# What no room below may load on import: torch, and what only an extra installs.
NOT_ON_IMPORT = ("torch", "sklearn", "scipy", "pyarrow", "zarr", "obstore", "mlflow", "wandb")
# What would make a help page slow besides.
HEAVY = (*NOT_ON_IMPORT, "pandas", "plotly", "tensorboardX")
# Words that do their whole work without torch.
TORCH_FREE_WORDS: list[list[str]] = [
    ["recipes"],
    ["recipes", "--json"],
    ["machines"],
    ["machines", "aurora"],
    # A whole plan: read, searched, priced, explained and printed.
    [
        "plan",
        "gpt:layers=2,hidden=64,heads=2,seq=64,vocab=128",
        *("--machine", "polaris", "--devices", "4", "--batch", "8", "--why", "tensor=2"),
    ],
]
SNAPSHOT = Path(__file__).with_name("cli_words.json")

PROBE = """
import sys
sys.argv[:] = ["armillary", *sys.argv[2:]] if sys.argv[1] == "armillary.cli:main" else sys.argv
try:
    if sys.argv[0] == "armillary":
        from armillary.cli import main
        main()
    else:
        __import__(sys.argv[1])
except SystemExit as stop:
    code = stop.code or 0
else:
    code = 0
heavy = {heavy!r}
print("LOADED", code, *sorted(name for name in heavy if name in sys.modules), file=sys.stderr)
"""


def torch_at_module_level(source: Source) -> list[str]:
    """Imports of torch that run as soon as the module is imported."""
    if source.room in MAY_IMPORT_TORCH_AT_MODULE_LEVEL or source.path.startswith(RUNS_PROGRAMS):
        return []
    return [
        f"{source.path}:{node.lineno}: imports torch at module level"
        for node in statements_at_import(source.tree.body)
        if any(name.split(".")[0] == "torch" for name in imported_modules(source, node))
    ]


def loaded_by(*arguments: str, path: Path | None = None) -> tuple[str, list[str]]:
    """(exit code, heavy packages loaded) of an import or of the command line in a new process."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    assert last.startswith("LOADED"), done.stderr
    _, code, *loaded = last.split()
    return code, loaded


def exists(module: str) -> bool:
    """Whether a module of the package is on disk; a room that is not built yet is skipped."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def words() -> list[str]:
    """The words of the command line's snapshot."""
    frozen = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.is_file() else {}
    return sorted(set(frozen) - {"armillary"})


def test_no_torch_at_module_level_in_the_lower_floors() -> None:
    assert [line for source in all_sources() for line in torch_at_module_level(source)] == []


@pytest.mark.parametrize("module", LAZY_MODULES)
def test_importing_loads_no_torch(module: str) -> None:
    if not exists(module):
        pytest.skip(f"{module} is not built yet")
    code, loaded = loaded_by(module)
    assert code == "0"
    assert [name for name in loaded if name in NOT_ON_IMPORT] == []


@pytest.mark.skipif(not exists("armillary.cli"), reason="the door is not built yet")
@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([word, "--help"] for word in words()), *TORCH_FREE_WORDS],
    ids=" ".join,
)
def test_words_that_need_no_torch_load_none(arguments: list[str]) -> None:
    assert loaded_by("armillary.cli:main", *arguments) == ("0", [])


@pytest.mark.parametrize(
    ("path", "text", "is_caught"),
    [
        ("axes/data.py", "import torch", True),
        ("axes/data.py", "from torch.distributed import fsdp", True),
        ("axes/data.py", "try:\n    import torch.nn\nexcept ImportError:\n    pass", True),
        ("axes/data.py", "class C:\n    import torch", True),
        ("axes/data.py", "def apply():\n    import torch", False),
        ("axes/data.py", "if TYPE_CHECKING:\n    import torch", False),
        ("axes/data.py", "import torchdata_like", False),
        ("train/loop.py", "import torch", False),
    ],
)
def test_the_syntax_rule_can_fail(path: str, text: str, is_caught: bool) -> None:
    assert bool(torch_at_module_level(source_from(path, text))) == is_caught


def test_the_probe_sees_what_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "toy.py").write_text("import torch")
    (tmp_path / "clean.py").write_text("def apply():\n    import torch")
    assert loaded_by("toy", path=tmp_path) == ("0", ["torch"])
    assert loaded_by("clean", path=tmp_path) == ("0", [])


def test_the_syntax_reader_sees_every_import_of_a_statement() -> None:
    source = source_from("train/deep/toy.py", "from ..axes import data\nimport a.b, c")
    relative, plain = source.tree.body
    assert isinstance(relative, ast.ImportFrom)
    assert imported_modules(source, relative) == [
        "armillary.train.axes",
        "armillary.train.axes.data",
    ]
    assert imported_modules(source, plain) == ["a.b", "c"]
