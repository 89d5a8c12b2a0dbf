"""Is the README's tree true?

The tree is the first fenced block under the heading "## The tree". A line is an entry, indented
two spaces a level, then what it is for. A folder ends in "/". A folder that is opened (has entries
below it) must list everything in it; one that is not opened may hold anything. Left out on both
sides: names that begin with a dot or an underscore, and `py.typed`.
"""

from __future__ import annotations

import re

import pytest

from tests.shape.reading import REPOSITORY, repository_files

LEFT_OUT = {"py.typed"}


def tree_of(readme: str) -> str:
    """The text of the tree block."""
    match = re.search(r"^## The tree\n.*?^```\w*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert match, 'the README has no block under "## The tree"'
    return match.group(1)


def entries_of(tree: str) -> list[str]:
    """The paths that a tree names, folders with a closing slash."""
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for line in tree.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        while folders and folders[-1][0] >= depth:
            folders.pop()
        path = (folders[-1][1] if folders else "") + name
        paths.append(path)
        if name.endswith("/"):
            folders.append((depth, path))
    return paths


def contents(files: list[str], folder: str) -> set[str]:
    """What stands directly in a folder, folders with a closing slash."""
    inside = [name.removeprefix(folder) for name in files if name.startswith(folder)]
    names = {name.split("/")[0] + ("/" if "/" in name else "") for name in inside}
    return {f"{folder}{name}" for name in names if name[0] not in "._" and name not in LEFT_OUT}


def differences(tree: str, files: list[str]) -> list[str]:
    """Where a tree and the files disagree, both ways."""
    listed = entries_of(tree)
    twice = {path for path in listed if listed.count(path) > 1}
    opened = {""} | {
        path
        for path in listed
        if path.endswith("/") and any(other.startswith(path) and other != path for other in listed)
    }
    actual = {path for folder in opened for path in contents(files, folder)}
    return (
        [f"the README lists {path}, which does not exist" for path in sorted(set(listed) - actual)]
        + [f"the README does not list {path}" for path in sorted(actual - set(listed))]
        + [f"the README lists {path} twice" for path in sorted(twice)]
    )


def test_the_readmes_tree_is_true() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert differences(tree_of(readme), repository_files()) == []


FILES = [
    "README.md",
    "src/a/__init__.py",
    "src/a/one.py",
    "src/a/room/x.py",
    "docs/log/y.md",
    ".ci/run",
]
TRUE_TREE = """\
src/a/        the package
  one.py      the one
  room/       a room
docs/         for reading
README.md     this
"""


@pytest.mark.parametrize(
    ("before", "after", "is_true"),
    [
        ("", "", True),
        ("  one.py      the one\n", "", False),
        ("  room/       a room\n", "  room/       a room\n  two.py      another\n", False),
        ("docs/         for reading\n", "", False),
        ("docs/         for reading\n", "docs/\n  log/   kept\n", True),
        ("docs/         for reading\n", "docs/\n  book/   kept\n", False),
        ("README.md     this\n", "README.md     this\nREADME.md     this\n", False),
    ],
)
def test_a_false_tree_is_caught(before: str, after: str, is_true: bool) -> None:
    tree = TRUE_TREE.replace("src/a/        the package\n", "src/\n  a/        the package\n")
    tree = tree.replace("  one.py", "    one.py").replace("  room/", "    room/")
    before = re.sub(r"^(?=  \w)", "  ", before, flags=re.MULTILINE)
    after = re.sub(r"^(?=  (one|room|two))", "  ", after, flags=re.MULTILINE)
    assert (differences(tree.replace(before, after), FILES) == []) == is_true
