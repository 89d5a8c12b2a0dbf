"""Documents: what is written is read back, and what is not theirs is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.spec import (
    Block,
    Document,
    Layout,
    Manifest,
    ModelGraph,
    SpecError,
    TrainSettings,
    write_atomically,
)

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
AXES = st.dictionaries(st.sampled_from(["data", "sharded", "tensor"]), st.integers(1, 9))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS

LAYOUTS = st.builds(
    Layout,
    degrees=AXES,
    micro_batch_size=st.integers(0, 9),
    compile=st.booleans(),
    precision=st.sampled_from(["float32", "bfloat16", "float16", "float64"]),
    recompute=st.sampled_from(["none", "full"]),
)
SETTINGS = st.builds(
    TrainSettings,
    epochs=st.integers(1, 99),
    seed=st.integers(0, 2**40),
    clip_norm=st.floats(0, 9),
    shuffle=st.booleans(),
    global_batch_size=st.integers(1, 999),
)
BLOCKS = st.builds(Block, path=WORDS, num_parameters=st.integers(), parameter_bytes=st.integers())
GRAPHS = st.builds(
    ModelGraph,
    name=WORDS,
    num_parameters=st.integers(),
    parameter_bytes=st.integers(),
    blocks=st.lists(BLOCKS, max_size=3).map(tuple),
    has_batch_norm=st.booleans(),
)
MANIFESTS = st.builds(
    Manifest,
    recipe=WORDS,
    recipe_sha256=WORDS,
    created_utc=WORDS,
    layout=LAYOUTS,
    settings=SETTINGS,
    options=st.dictionaries(WORDS, PLAIN, max_size=3),
    num_samples=st.dictionaries(WORDS, st.integers(), max_size=3),
    num_parameters=st.integers(),
)
DOCUMENTS = LAYOUTS | SETTINGS | BLOCKS | GRAPHS | MANIFESTS


@given(DOCUMENTS)
def test_a_document_is_read_back_as_it_was(document: Document) -> None:
    assert type(document).from_json(document.to_json()) == document
    assert type(document).from_dict(document.to_dict()) == document


@given(DOCUMENTS, WORDS.filter(bool))
def test_an_unknown_key_is_refused(document: Document, name: str) -> None:
    known = {field.name for field in dataclasses.fields(document)} | {"schema"}  # type: ignore[arg-type]
    if name in known:
        return
    with pytest.raises(SpecError, match="unknown key"):
        type(document).from_dict(document.to_dict() | {name: 1})


@given(LAYOUTS)
def test_a_layout_in_words_is_read_back(layout: Layout) -> None:
    words = str(layout) if str(layout) != "serial" else ""
    again = Layout.parse(words)
    assert again == dataclasses.replace(
        layout, degrees={axis: degree for axis, degree in layout.degrees.items() if degree > 1}
    )
    assert again.num_ranks == layout.num_ranks


@pytest.mark.parametrize(
    ("cls", "values", "where"),
    [
        (TrainSettings, {"epochs": "three"}, "settings.epochs"),
        (TrainSettings, {"epochs": 1.5}, "settings.epochs"),
        (TrainSettings, {"epochs": True}, "settings.epochs"),
        (TrainSettings, {"shuffle": 1}, "settings.shuffle"),
        (TrainSettings, {"schema": 2}, "settings.schema"),
        (Layout, {"degrees": {"data": "2"}}, "layout.degrees.data"),
        (Layout, {"degrees": [2]}, "layout.degrees"),
        (
            ModelGraph,
            {"name": "m", "num_parameters": 1, "parameter_bytes": 4, "blocks": [{"path": "a"}]},
            "model graph.blocks[0]",
        ),
        (Manifest, {"recipe": "r"}, "manifest"),
    ],
)
def test_a_wrong_value_is_refused_where_it_stands(
    cls: type[Document], values: dict[str, Any], where: str
) -> None:
    with pytest.raises(SpecError) as refused:
        cls.from_dict(values)
    assert refused.value.where == where


def test_a_near_miss_is_named() -> None:
    with pytest.raises(SpecError, match="did you mean 'epochs'"):
        TrainSettings.from_dict({"epoch": 3})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_what_is_no_document_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "layout.json"
    path.write_text(text)
    with pytest.raises(SpecError):
        Layout.read(path)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "missing.json", tmp_path / "binary.json"):
        with pytest.raises(SpecError, match="cannot be read"):
            Layout.read(path)


def test_a_document_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Layout().precision = "float64"  # type: ignore[misc]


@given(WORDS, WORDS)
def test_a_write_is_whole_or_not_at_all(before: str, after: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write_atomically(path, json.dumps(before))
        with pytest.raises(UnicodeEncodeError):
            write_atomically(path, "\ud800")
        assert json.loads(path.read_text(encoding="utf-8")) == before
        write_atomically(path, json.dumps(after))
        assert json.loads(path.read_text(encoding="utf-8")) == after
        assert [entry.name for entry in Path(folder).iterdir()] == ["file"]
