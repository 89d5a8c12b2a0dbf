"""`armillary machines`, as a person types it and as a program reads it."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from typer.testing import CliRunner

from armillary import machines
from armillary.cli import app

WIDE = {"COLUMNS": "160", "TERM": "dumb"}


def said(*words: object) -> str:
    """What the command prints when it goes well."""
    result = CliRunner().invoke(app, ["machines", *map(str, words)], env=WIDE)
    assert result.exit_code == 0, result.output
    return result.output


def test_all_machines_are_listed() -> None:
    text = said()
    assert [name for name in machines.names() if name not in text] == []
    rows = json.loads(said("--json"))
    assert [row["name"] for row in rows] == list(machines.names())
    [aurora] = [row for row in rows if row["name"] == "aurora"]
    assert aurora["num_devices"] == 127_488
    assert aurora["peak_flops_per_s"] == pytest.approx(127_488 * 344.1e12)


def test_one_machine_is_explained_number_by_number() -> None:
    text = said("aurora")
    for words in ("machine: 166 groups", "node: 6 packages", "15 GB/s a pair", "taper 1.552"):
        assert words in text
    assert "argonne-lcf/user-guides" in text
    assert "not known" in text and "errs to" in text
    assert json.loads(said("aurora", "--json"))["num_nodes"] == 10_624


def test_every_machine_can_be_explained_in_a_narrow_terminal() -> None:
    for name in machines.names():
        result = CliRunner().invoke(app, ["machines", name], env={"COLUMNS": "80", "TERM": "dumb"})
        assert result.exit_code == 0, (name, result.output)
        assert max(map(len, result.output.splitlines())) <= 80


@pytest.mark.parametrize("name", ["aurora", "leonardo_booster", "blue_waters", "laptop_2core"])
def test_the_picture_is_svg_with_every_level(name: str, tmp_path: Path) -> None:
    said(name, "--svg", tmp_path / "picture.svg")
    text = " ".join(ElementTree.parse(tmp_path / "picture.svg").getroot().itertext())
    for level in machines.load(name).levels:
        assert f"{level.name}: " in text


def test_the_template_is_a_machine_of_ones_own(tmp_path: Path) -> None:
    ours = tmp_path / "ours.toml"
    ours.write_text(said("--template"))
    assert "Our cluster" in said(ours)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["auroa"], "did you mean 'aurora'?"),
        (["no/such.toml"], "check the path"),
        (["aurora", "--template"], "leave the machine out"),
        (["--svg", "picture.svg"], "name one"),
        (["aurora", "--svg", "no/such/folder/picture.svg"], "name another file"),
    ],
)
def test_a_mistake_is_told_in_four_parts(words: list[str], says: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "armillary.cli", "machines", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "rule" in done.stderr and "Traceback" not in done.stderr
