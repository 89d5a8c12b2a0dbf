"""What tests of launchers and job scripts share: the programs found here, and what runs left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = str(Path(sys.executable).parent)
TIMEOUT_S = 240.0
TROUBLE = str(Path(__file__).parents[1] / "fault" / "cases" / "trouble.py")


def program(name: str, says: str = "") -> str:
    """The first program `name` beside this interpreter or on the path whose version says so.

    Two MPIs may be here at once, whose mpiexec have one name. A test that needs what is not here
    is skipped, and says so.
    """
    for folder in [PROGRAMS, *os.environ["PATH"].split(os.pathsep)]:
        path = Path(folder) / name
        if os.access(path, os.X_OK) and (not says or says in _version(path)):
            return str(path)
    pytest.skip(f"no {name}{f' of {says}' if says else ''} on the path")


def _version(path: Path) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with one thread a rank."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | more


def run(
    command: list[str], folder: Path, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command run to its end in `folder`."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**(variables or {})),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def armillary(
    *words: str, folder: Path, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a word of the command line answers to a program."""
    command = [sys.executable, "-m", "armillary.cli", *words, "--json"]
    done = run(command, folder, variables)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def losses(runs: Path) -> list[float]:
    """The losses of every step of the one run in `runs`."""
    [path] = runs.glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_step = {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}
    return [by_step[step] for step in sorted(by_step)]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds."""
    give_up_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < give_up_s, f"it never came to that: {what}"
        time.sleep(0.2)
