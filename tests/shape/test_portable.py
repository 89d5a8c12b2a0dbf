"""Would every file read the same on any other machine?

No path of one machine, and no host of a package registry: an installation takes what it finds.
"""

from __future__ import annotations

import re

import pytest

from tests.shape.reading import REPOSITORY, repository_files

# Written so that no pattern matches its own text.
NOT_PORTABLE = {
    "a path of one machine": re.compile(
        r"(?<![\w.~)}-])/(?:work|farm|root)\b|/opt/(?:av|pypi|wheels)\b|/(?:home|Users)/[a-z]\w*/"
    ),
    "a registry's host": re.compile(
        r"\b(?:test[.])?pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|registry[.]npmjs[.]|"
        r"(?:deb|security)[.]debian[.]org|conda[.]anaconda[.]org",
        re.IGNORECASE,
    ),
}


def not_portable(name: str, text: str) -> list[str]:
    """Lines that name one machine or one registry."""
    return [
        f"{name}:{number}: {what}"
        for number, line in enumerate(text.splitlines(), start=1)
        for what, pattern in NOT_PORTABLE.items()
        if pattern.search(line)
    ]


def test_every_file_is_portable() -> None:
    found = []
    for name in repository_files():
        try:
            text = (REPOSITORY / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += not_portable(name, text)
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "path = '{0}work{0}data'",
        "cd {0}root",
        "{0}home{0}ada{0}x",
        "{0}opt{0}av{0}bin",
        "x.pypi{1}org",
    ],
)
def test_a_line_of_one_machine_is_caught(line: str) -> None:
    assert not_portable("toy", line.format("/", "."))


@pytest.mark.parametrize(
    "line", ["../shared/data", "runs/work/x", "tests/root", "/tmp", "~/work/x"]
)
def test_an_ordinary_path_is_not(line: str) -> None:
    assert not_portable("toy", line) == []
