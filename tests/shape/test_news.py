"""Can every news fragment be released?"""

from __future__ import annotations

import re
import tomllib

from tests.shape.reading import REPOSITORY


def test_every_fragment_has_a_number_a_type_and_a_sentence() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["towncrier"]
    types = "|".join(one["directory"] for one in settings["type"])
    name = re.compile(rf"(\d+|\+[\w-]+)\.({types})(\.\d+)?\.md")
    fragments = [one for one in (REPOSITORY / "changes").iterdir() if one.name != "README.md"]
    assert [one.name for one in fragments if not name.fullmatch(one.name)] == []
    assert [one.name for one in fragments if not one.read_text().strip().endswith(".")] == []
