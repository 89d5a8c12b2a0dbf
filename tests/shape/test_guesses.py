"""Is every constant without a source named GUESS_ and listed, with what would replace it?

`guesses.json` maps the dotted name to one sentence: what measurement or paper would settle it.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tests.shape.reading import Source, all_sources, source_from

LISTING = Path(__file__).with_name("guesses.json")


def guesses_in(source: Source) -> list[str]:
    """Dotted names of the GUESS_ constants that a file assigns, at any depth."""
    return [
        f"{source.module}.{node.id}"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Name)
        and isinstance(node.ctx, ast.Store)
        and node.id.startswith("GUESS_")
    ]


def test_every_guess_is_listed_and_every_listing_exists() -> None:
    listed = json.loads(LISTING.read_text())
    assert sorted(name for source in all_sources() for name in guesses_in(source)) == sorted(listed)


def test_every_listed_guess_says_what_would_settle_it() -> None:
    listed = json.loads(LISTING.read_text())
    assert [name for name, sentence in listed.items() if len(sentence.split()) < 4] == []


def test_a_guess_is_found() -> None:
    source = source_from(
        "core/toy.py", "GUESS_A = 1\nclass C:\n    GUESS_B: float = 2\nx = GUESS_A"
    )
    assert guesses_in(source) == ["armillary.core.toy.GUESS_A", "armillary.core.toy.GUESS_B"]
