"""A graph file that is torn, foreign or of another version is never planned from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armillary.models import families, store
from armillary.spec import ModelGraph, SpecError

pytestmark = pytest.mark.fault


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file."""
    file = tmp_path / "model.graph.json"
    families.parse("gpt:layers=2,hidden=64,heads=4,seq=8,vocab=64").write(file)
    return file


def change(path: Path, by: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    by(values)
    path.write_text(json.dumps(values))


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "of another version": (lambda v: v.update(schema=99), "version 99"),
    "without a version": (lambda v: v.pop("schema"), "no version"),
    "with an unknown key": (lambda v: v.update(colour="red"), "unknown key"),
    "with words for a number": (lambda v: v.update(num_parameters="many"), "'many'"),
    "with an op of another version": (
        lambda v: v["segments"][0]["ops"][0].update(schema=0),
        "version 0",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_is_refused(path: Path, fault: str) -> None:
    by, found = FAULTS[fault]
    change(path, by)
    with pytest.raises(SpecError) as caught:
        store.load_graph(path)
    assert found in caught.value.found and caught.value.fix


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1}'])
def test_a_torn_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(SpecError):
        store.load_graph(path)
    with pytest.raises(SpecError):
        store.load_graph(path.with_name("absent.json"))


def test_a_torn_file_of_the_cache_is_made_anew(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> ModelGraph:
        made.append(1)
        return families.parse("gpt:layers=2,hidden=64,heads=4,seq=8,vocab=64")

    folder = tmp_path / "not" / "there"
    first = store.remembered(folder, "key", make)
    assert store.remembered(folder, "key", make) == first and len(made) == 1
    [file] = folder.iterdir()
    file.write_text(file.read_text()[:100])
    assert store.remembered(folder, "key", make) == first and len(made) == 2


def test_where_graphs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARMILLARY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.cache_folder() == tmp_path / "armillary"
    monkeypatch.setenv("ARMILLARY_CACHE", str(tmp_path / "own"))
    assert store.cache_folder() == tmp_path / "own"


def test_a_key_depends_on_every_part() -> None:
    keys = {store.key_of(parts) for parts in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"])}
    assert len(keys) == 4
