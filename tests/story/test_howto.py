"""Do the pages of docs/howto do what they say, in the blocks that they mark to run?"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.story.test_readme import REPOSITORY, broken_links, commands, run

PAGES = sorted((REPOSITORY / "docs" / "howto").glob("*.md"))


def test_the_pages_that_were_asked_for_are_there() -> None:
    assert {path.stem for path in PAGES} >= {"aurora", "alps", "laptop", "slurm"}
    assert sum(len(commands(path.read_text(encoding="utf-8"))) for path in PAGES) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page.read_text(encoding="utf-8"), page.parent) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_marked_blocks_run(page: Path, tmp_path: Path) -> None:
    for command in commands(page.read_text(encoding="utf-8")):
        done = run(command, tmp_path)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_says_what_was_tried(page: Path) -> None:
    text = page.read_text(encoding="utf-8").lower()
    assert "tried" in text.split("## ")[0]
