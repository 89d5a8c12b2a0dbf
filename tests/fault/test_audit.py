"""The audit of dependencies: it fails on a hole, and claims nothing where nobody answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

HOLE = {"id": "PYSEC-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}
CLEAN = {"name": "numpy", "version": "2.4", "vulns": []}
BAD = {"name": "jinja2", "version": "1.0", "vulns": [HOLE]}
UNKNOWN = {"name": "ours", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("answer", "exit_code", "words"),
    [
        ([CLEAN, UNKNOWN], 0, "1 of 2 packages looked up, 0 vulnerabilities; not looked up: ours"),
        ([CLEAN, BAD], 1, "jinja2 1.0: PYSEC-1, mended in 2.0"),
        ([UNKNOWN], 0, "NOTHING WAS AUDITED: the index here knows of none"),
        (None, 0, "NOTHING WAS AUDITED: no way to the network"),
    ],
)
def test_what_it_says(tmp_path: Path, answer: Any, exit_code: int, words: str) -> None:
    (tmp_path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    program = tmp_path / "audit" / "bin" / "pip-audit"
    program.parent.mkdir(parents=True)
    if answer is None:
        program.write_text("#!/bin/sh\necho 'no way to the network' >&2\nexit 1\n")
    else:
        said = json.dumps({"dependencies": answer})
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    program.chmod(0o755)
    command = [sys.executable, str(REPOSITORY / ".ci" / "audit"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, words in done.stdout) == (exit_code, True), done.stdout + done.stderr
