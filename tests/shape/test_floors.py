"""Does every room import only from the floors below it?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.shape.reading import PACKAGE, REPOSITORY

CONFIGURATION = REPOSITORY / "pyproject.toml"
# The design's floors, top to bottom; `step` is what `train` and `verify` both run.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"recipes"},
    {"plan", "verify", "rehearse", "train", "audit", "serve"},
    {"step"},
    {"axes", "models", "machines", "networks", "feeds"},
    {"core"},
    {"spec"},
]


def layers() -> list[str]:
    """The layers of the contract as they are written."""
    settings = tomllib.loads(CONFIGURATION.read_text())["tool"]["importlinter"]
    (contract,) = [one for one in settings["contracts"] if one["id"] == "floors"]
    assert contract["exhaustive"] is True
    return list(contract["layers"])


def is_built(room: str) -> bool:
    """Whether a room holds something."""
    return (PACKAGE / f"{room}.py").is_file() or (PACKAGE / room / "__init__.py").is_file()


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package in `folder` with this repository's contracts."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [str(program), "--config", str(CONFIGURATION), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def build_toy_house(folder: Path) -> Path:
    """A house of empty rooms, one for every room that the contract expects to exist."""
    package = folder / "armillary"
    package.mkdir()
    (package / "__init__.py").touch()
    for room in re.findall(r"(?<!\()\b\w+\b(?!\))", " ".join(layers())):
        (package / room).mkdir()
        (package / room / "__init__.py").touch()
    return package


def test_the_contract_is_the_designs_floors() -> None:
    written = [set(re.findall(r"\w+", layer)) for layer in layers()]
    assert written == FLOORS


def test_a_built_room_is_not_optional() -> None:
    optional = re.findall(r"\((\w+)\)", " ".join(layers()))
    assert [room for room in optional if is_built(room)] == []


def test_every_room_keeps_to_its_floor() -> None:
    expected = re.findall(r"(?<!\()\b\w+\b(?!\))", " ".join(layers()))
    absent = [room for room in expected if not is_built(room)]
    if absent:
        pytest.skip(f"not built yet: {', '.join(absent)}")
    done = lint(PACKAGE.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_toy_house_stands(tmp_path: Path) -> None:
    build_toy_house(tmp_path)
    done = lint(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("spec", "import armillary.train"),
        ("feeds", "def f():\n    from armillary import axes"),
        ("train", "import armillary.audit"),
        ("axes", "import armillary.recipes"),
        ("audit", "import torch"),
        ("cli", "def f():\n    import torch.distributed"),
        ("attic", ""),
    ],
)
def test_a_broken_floor_is_caught(tmp_path: Path, room: str, text: str) -> None:
    package = build_toy_house(tmp_path)
    (package / room).mkdir(exist_ok=True)
    (package / room / "__init__.py").write_text(text)
    assert lint(tmp_path).returncode != 0
