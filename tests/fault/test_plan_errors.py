"""Bad words for a plan: each is refused before anything is searched, with the way out."""

import dataclasses
import json
from pathlib import Path

import pytest

from armillary.models.families import parse
from armillary.plan.request import PlanWords, plan_request
from armillary.plan.target import find_target
from armillary.spec import Candidate, Layout, ModelGraph, Plan, SpecError, read_layout, read_plan

pytestmark = pytest.mark.fault
FAMILY = "gpt:layers=4,hidden=256,heads=4,seq=128,vocab=512"
WORDS = PlanWords(machine="dgx_h100", devices=8, batch=64)


def refusal(target: str = FAMILY, **words: object) -> SpecError:
    """What the plan with these words is refused with."""
    with pytest.raises(SpecError) as caught:
        plan_request(target, dataclasses.replace(WORDS, **words)).make()  # type: ignore[arg-type]
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("words", "where", "found"),
    [
        ({"machine": "aurroa"}, "machine", "aurroa"),
        ({"devices": 0}, "--devices", "0"),
        ({"devices": -8}, "--devices", "-8"),
        ({"devices": 10**7}, "--devices", "10,000,000"),
        ({"at_most": 10**7, "devices": None}, "--at-most", "10,000,000"),
        ({"at_most": 4}, "--at-most", "beside --devices 8"),
        ({"batch": 0}, "--batch", "0"),
        ({"batch": -1}, "--batch", "-1"),
        ({"batch": None}, "--batch", "missing"),
        ({"objective": "tiem"}, "--objective", "tiem"),
        ({"deadline": "2 fortnights", "steps": 10}, "--deadline", "2 fortnights"),
        ({"deadline": "nanh", "steps": 10}, "--deadline", "nanh"),
        ({"deadline": "-2h", "steps": 10}, "--deadline", "-2h"),
        ({"deadline": "2h"}, "--deadline", "without a length"),
        ({"budget": "much", "steps": 10}, "--budget", "much"),
        ({"budget": "10usd"}, "--budget", "without a length"),
        ({"budget": "0.000001usd", "steps": 1000}, "--budget", "dollars"),
        ({"machine": "polaris", "budget": "10usd", "steps": 10}, "--budget", "no price"),
        ({"steps": 10, "samples": 10}, "--samples", "beside"),
        ({"steps": 0}, "--steps", "0"),
        ({"epochs": 3}, "--epochs", "not known"),
        ({"fix": "tensr=2"}, "layout.tensr", "unknown axis"),
        ({"fix": "tensor=0"}, "layout.tensor", "degree 0"),
        ({"fix": "tensor=3"}, "layout.tensor", "degree 3"),
        ({"fix": "pipeline.schedule=zb"}, "layout.pipeline.schedule", "zb"),
        ({"fix": "compile=true"}, "--fix.compile", "compiled"),
        ({"fix": "tensor=4,data=64"}, "--devices", "no tuple"),
        ({"precision": "float7"}, "--precision", "float7"),
        ({"machine": "summit", "precision": "bfloat16"}, "device.peak", "not known"),
        ({"software": "megatron"}, "--software", "megatron"),
        ({"efficiency": 0.0}, "--efficiency", "0.0"),
        ({"top": 0}, "--top", "0"),
        ({"options": {"a": "1"}}, "--set", "no recipe"),
        ({"batch": 7, "fix": "data=8"}, "layout", "does not divide"),
        ({"fix": "micro_batch_size=5"}, "layout.micro_batch_size", "does not divide"),
    ],
    ids=str,
)
def test_words_that_cannot_be_planned(words: dict[str, object], where: str, found: str) -> None:
    error = refusal(**words)
    assert error.where.startswith(where), str(error)
    assert found in str(error)


def test_a_layout_that_is_asked_about_is_read_before_anything_is_planned() -> None:
    with pytest.raises(SpecError) as caught:
        plan_request(FAMILY, WORDS, ("tensor=banana",))
    assert caught.value.where == "layout.tensor" and "banana" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "where"),
    [
        ("", "target"),
        ("gpd:layers=2", "target"),
        ("gpt:layers=2", "gpt"),
        ("gpt:layers=2,hidden=10,heads=3,seq=8,vocab=8", "gpt"),
        ("gpt:layers=2,hiden=10", "gpt"),
        ("gpt:layers=0,hidden=12,heads=3,seq=8,vocab=8", "gpt"),
        ("no_such_case.py", "recipe"),
        ("no_such_recipe", "target"),
        ("nowhere.json", "nowhere.json"),
    ],
)
def test_targets_that_are_none(target: str, where: str) -> None:
    error = refusal(target)
    assert error.where.startswith(where) and "MISSING" not in error.fix


def test_a_graph_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    values = parse(FAMILY).to_dict() | {"schema": ModelGraph.schema + 1}
    path.write_text(json.dumps(values))
    error = refusal(str(path))
    assert "version" in error.found and "schema" in error.where


def test_a_graph_without_ops_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    dataclasses.replace(parse(FAMILY), segments=()).write(path)
    assert "segments" in refusal(str(path)).where


def test_a_model_larger_than_all_devices_says_what_is_missing() -> None:
    error = refusal("gpt:layers=96,hidden=12288,heads=96,seq=2048,vocab=51200", devices=1)
    assert "GiB" in str(error) and "memory" in error.where


def test_a_torn_graph_that_was_kept_is_traced_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = find_target("weather")
    [kept] = tmp_path.rglob("*.json")
    kept.write_text(kept.read_text()[:1000])
    assert find_target("weather").sha256 == first.sha256
    assert find_target("weather").sha256 == first.sha256  # and was kept again


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert find_target("weather").graph.num_parameters > 0


PLAN = Plan(
    layout=Layout(degrees={"data": 2}),
    machine="laptop_2core",
    model="x",
    num_parameters=1,
    num_devices=2,
    num_given=2,
    global_batch_size=8,
    objective="time",
    predicted_step_s=1.0,
    predicted_memory_bytes=1.0,
    memory_limit_bytes=2.0,
    best=Candidate(
        layout=Layout(degrees={"data": 2}),
        num_devices=2,
        predicted_step_s=1.0,
        predicted_memory_bytes=1.0,
        predicted_device_hours=1.0,
    ),
)


def test_a_plan_or_a_layout_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    PLAN.write(path)
    assert read_layout(path) == PLAN.layout
    assert read_plan(path) == (PLAN.layout, PLAN)
    PLAN.layout.write(path)
    assert read_plan(path) == (PLAN.layout, None)
    path.write_text(json.dumps({"layout": {"degrees": {"data": 2}}}))
    assert read_plan(path) == (PLAN.layout, None)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"degrees": {"data": 0}}', '{"layout": {"degree": {}}}']
)
def test_a_file_that_holds_no_layout_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(SpecError):
        read_plan(path)


def test_a_plan_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN.to_dict() | {"schema": 99}))
    with pytest.raises(SpecError, match="version 99"):
        read_plan(path)
