"""Does the audit of what is installed find what is wrong, and say so where nobody answered?

Its environment is made up here, and so is what pip-audit hears; pip-audit itself was tried by hand
beside a local OSV.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[2] / ".ci" / "audit"
KNOWN = {"name": "rich", "version": "15.0.0", "vulns": []}
UNKNOWN = {"name": "rich", "skip_reason": "not found"}
OURS = {"name": "ours", "skip_reason": "not found"}
HOLE = KNOWN | {"vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["15.0.1"]}]}


def environment(
    folder: Path,
    heard: list[dict[str, object]] | None,
    version: str = "15.0.0",
    content: str = "x = 1\n",
) -> Path:
    """An environment that has one package, and a pip-audit: it hears `heard`, or nobody."""
    packages = folder / "lib" / "python3.11" / "site-packages"
    info = packages / f"rich-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rich\nVersion: {version}\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"x = 1\n").digest()).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"rich.py,sha256={digest},6\n{info.name}/RECORD,,\n")
    (packages / "rich.py").write_text(content)
    program = folder / "audit" / "bin" / "pip-audit"
    program.parent.mkdir(parents=True)
    said = "" if heard is None else f"print({json.dumps({'dependencies': heard})!r})"
    program.write_text(f"#!{sys.executable}\n{said}\n")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("heard", "changes", "words", "code", "said"),
    [
        ([KNOWN], {}, [], 0, "1 of 1 packages looked up, 0 found"),
        ([KNOWN, OURS], {}, [], 0, "1 of 2 packages looked up, 0 found; not looked up: ours"),
        ([HOLE], {}, [], 1, "rich 15.0.0: PYSEC-2026-1, mended in 15.0.1"),
        ([UNKNOWN], {}, [], 0, "NOTHING WAS LOOKED UP: of 1 packages none"),
        ([UNKNOWN], {}, ["--required"], 1, "NOTHING WAS LOOKED UP"),
        (None, {}, [], 0, "NOTHING WAS LOOKED UP: pypi: exit code 0; osv"),
        (None, {}, ["--required"], 1, "NOTHING WAS LOOKED UP"),
        ([KNOWN], {"content": "x = 2\n"}, [], 1, "rich.py is not as its wheel recorded it"),
        ([KNOWN], {"version": "14.9.0"}, [], 1, "rich 14.9.0 is installed, constraints.txt pins"),
    ],
)
def test_what_is_wrong_is_found(
    heard: list[dict[str, object]] | None,
    changes: dict[str, str],
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
) -> None:
    venv = environment(tmp_path, heard, **changes)
    command = [sys.executable, str(AUDIT), str(venv), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
