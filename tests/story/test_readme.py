"""Does the README do what it says, typed as a reader types it?

A python block whose first line is `# name.py` is saved under that name. A console block after a
line `<!-- runs -->` is executed: each line that begins with `$ `, in order, in one empty folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
EXAMPLE_LINES = 15


def saved_files(text: str) -> dict[str, str]:
    """{file name: text} of the python blocks that begin with a file's name."""
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return dict(blocks)


def commands(text: str) -> list[str]:
    """The command lines of the console blocks marked to run."""
    blocks = re.findall(r"^<!-- runs -->\n+```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def broken_links(text: str, root: Path) -> list[str]:
    """Relative links that lead nowhere."""
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    return [target for target in targets if not (root / target).exists()]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One command line in a folder, with this interpreter's programs first on the path."""
    programs = str(Path(sys.executable).parent)
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": programs + os.pathsep + os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


def test_the_example_is_short() -> None:
    """15 lines, blank ones not counted."""
    (text,) = saved_files(README.read_text(encoding="utf-8")).values()
    assert len([line for line in text.splitlines() if line.strip()]) <= EXAMPLE_LINES


def test_every_link_leads_somewhere() -> None:
    assert broken_links(README.read_text(encoding="utf-8"), REPOSITORY) == []


@pytest.mark.slow
@pytest.mark.skipif(
    not (REPOSITORY / "src/armillary/cli.py").is_file(), reason="the door is not built yet"
)
def test_the_example_trains(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    for name, block in saved_files(text).items():
        (tmp_path / name).write_text(block)
    assert any(command.startswith("armillary train my_case.py") for command in commands(text))
    for command in commands(text):
        done = run(command, tmp_path)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
    reports = list(tmp_path.glob("runs/my_case-*/report.html"))
    assert reports, "the run left no report"


def test_the_reader_of_blocks_reads(tmp_path: Path) -> None:
    text = (
        "```python\n# a.py\nx = 1\n```\n\n```python\ny = 2\n```\n"
        "<!-- runs -->\n```console\n$ true\nsome output\n$ false\n```\n```console\n$ rm -r x\n```\n"
        "[a](a.py) [b](b.py#x) [c](https://example.org)"
    )
    assert saved_files(text) == {"a.py": "x = 1\n"}
    assert commands(text) == ["true", "false"]
    assert [run(command, tmp_path).returncode for command in commands(text)] == [0, 1]
    (tmp_path / "a.py").touch()
    assert broken_links(text, tmp_path) == ["b.py"]
