"""Are the words of the command line the ones people's scripts already use?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import typer

from tests.shape.cli_words import SNAPSHOT, current_words, words_of
from tests.shape.reading import PACKAGE

pytestmark = pytest.mark.skipif(
    not (PACKAGE / "cli.py").is_file(), reason="the door is not built yet"
)


def frozen() -> dict[str, Any]:
    """The words as they were frozen."""
    if not SNAPSHOT.is_file():
        pytest.fail("no words are frozen: make words")
    return dict(json.loads(SNAPSHOT.read_text()))


def test_the_words_are_frozen() -> None:
    assert current_words() == frozen(), "a word changed; if that is meant: make words, and say so"


def test_help_shows_every_frozen_word() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from armillary.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    shown = set(re.findall(r"[\w-]+", done.stdout))
    assert set(frozen()) - {"armillary"} <= shown


def test_every_verb_speaks_json() -> None:
    words = {name: one for name, one in frozen().items() if name != "armillary"}
    assert [name for name, one in words.items() if "--json" not in one["options"]] == []


def toy_app(option: str) -> typer.Typer:
    """A door of two words, one with an option of the given name."""
    app = typer.Typer()

    @app.command()
    def train(recipe: str, layout: str = typer.Option("", option)) -> None: ...

    @app.command(hidden=True)
    def rank() -> None: ...

    @app.command()
    def report(run: str) -> None: ...

    return app


def test_a_renamed_option_is_seen() -> None:
    before, after = (
        words_of(typer.main.get_command(toy_app(option)))["commands"]
        for option in ("--layout", "--plan")
    )
    assert sorted(before) == ["report", "train"]
    assert before["train"]["arguments"] == ["recipe"]
    assert "--layout" in before["train"]["options"]
    assert before != after
