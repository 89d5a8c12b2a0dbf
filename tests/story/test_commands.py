"""Can every command that a page or a help text shows be typed? Its words and options are there.

Nothing is run: the words are read as the door reads them, and layouts, assignments and families
as the rooms behind it do.
"""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from armillary.axes import admit
from armillary.cli import app
from armillary.models import families
from armillary.plan.choices import Fixed
from armillary.spec import Layout, SpecError
from armillary.spec.words import parse_assignments

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(armillary [a-z][^`\n]*)`")
DOOR = re.compile(r"(?:^|\s)(?:python3? -m armillary|-m armillary\.cli|armillary)\s+([a-z].*)")
GROUP: Any = get_command(app)
UsageError: Any = typer.BadParameter.__base__


def shown(text: str) -> Iterator[str]:
    """What follows `armillary` in the commands of a page, in its blocks and between back quotes."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            is_command = line.startswith(("$ ", "armillary ", "python -m armillary"))
            if is_command and (found := DOOR.search(line.removeprefix("$ "))):
                yield found[1]
    for command in INLINE.findall(BLOCK.sub("", text)):
        words = command.removeprefix("armillary ")
        if " " in words:  # more than the name of a word
            yield words


def helped() -> Iterator[tuple[str, str]]:
    """The examples of the help texts, by word."""
    for name, command in GROUP.commands.items():
        paragraphs = re.split(r"\n\s*\n", command.help or "")
        for paragraph in paragraphs:
            line = " ".join(paragraph.split()).removeprefix("Example: ")
            if re.match(r"(srun )?armillary [a-z]+ ", line) and (found := DOOR.search(line)):
                yield name, found[1]


def read(command: str) -> None:
    """Read a command as the door would, without running it; what a shell takes is left out."""
    arguments = [*takewhile(lambda word: word not in (">", "|"), shlex.split(command, True))]
    door = GROUP.make_context("armillary", [*arguments])
    name, word, rest = GROUP.resolve_command(door, arguments)
    given = word.make_context(name, rest, parent=door).params
    layouts = given.get("layout") or []
    for layout in [layouts] if isinstance(layouts, str) else layouts:
        admit(Layout.parse(layout))
    Fixed.parse(given.get("fix") or "")
    parse_assignments(given.get("assign") or [], "--set")
    target = str(given.get("target") or "")
    if ":" in target and "..." not in target:
        families.parse(target)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_commands_of_a_page_can_be_typed(page: Path) -> None:
    for command in shown(page.read_text(encoding="utf-8")):
        try:
            read(command)
        except Exception as error:
            pytest.fail(f"{page.name}: armillary {command}\n{type(error).__name__}: {error}")


@pytest.mark.parametrize(("word", "command"), [*helped()])
def test_the_examples_of_a_help_text_can_be_typed(word: str, command: str) -> None:
    assert command.split()[0] == word
    read(command)


def test_every_word_has_an_example_or_needs_none() -> None:
    alone = {"recipes", "status"}  # typed as they are
    assert set(GROUP.commands) == {word for word, _ in helped()} | alone


def test_every_word_is_in_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert [word for word in GROUP.commands if f"`armillary {word}" not in text] == []


@pytest.mark.parametrize(
    "command",
    [
        "train my_case.py --lay data=2",
        "fly",
        "train x --layout dtaa=2",
        "plan gpt:layer=2",
        "plan gpt --fix pipelin=2",
    ],
)
def test_a_wrong_command_is_seen(command: str) -> None:
    assert [*shown(f"```console\n$ armillary {command}  # so\n```\n")] == [f"{command}  # so"]
    with pytest.raises((SpecError, UsageError)):
        read(command)
