"""What `rehearse` says to a plan, a machine or a number that cannot be."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from armillary.cli import app
from armillary.plan.request import PlanWords, plan_request
from armillary.rehearse.jitter import Jitter
from armillary.rehearse.request import RehearsalWords, check_rank, rehearsal_request
from armillary.spec import Layout, Plan, SpecError

FAMILY = "gpt:layers=4,hidden=256,heads=4,seq=128,vocab=512"


@pytest.fixture(scope="module")
def plan() -> Plan:
    words = PlanWords(machine="polaris", devices=8, batch=16, fix="pipeline=2,tensor=2,data=2")
    return plan_request(FAMILY, words).make()


def refused(plan: Plan, folder: Path, **words: object) -> SpecError:
    path = folder / "plan.json"
    plan.write(path)
    with pytest.raises(SpecError) as found:
        rehearsal_request(path, RehearsalWords(**words))  # type: ignore[arg-type]
    return found.value


def test_a_layout_alone_is_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "layout.json"
    Layout(degrees={"data": 2}).write(path)
    with pytest.raises(SpecError, match="a layout alone"):
        rehearsal_request(path, RehearsalWords())


def test_a_plan_of_before_says_how_to_write_it_anew(plan: Plan, tmp_path: Path) -> None:
    error = refused(replace(plan, workload=None), tmp_path)
    assert "workload" in error.where and "armillary plan" in error.fix


def test_a_machine_that_has_changed_is_told(plan: Plan, tmp_path: Path) -> None:
    error = refused(replace(plan, machine_sha256="0" * 64), tmp_path)
    assert error.where == "plan.machine" and "--machine polaris" in error.fix
    path = tmp_path / "plan.json"
    assert rehearsal_request(path, RehearsalWords(machine="polaris")).machine.name == "polaris"


def test_a_machine_that_we_have_not_is_told(plan: Plan, tmp_path: Path) -> None:
    assert "--machine ours.toml" in refused(replace(plan, machine="ours"), tmp_path).fix


def test_a_machine_too_small_for_the_ranks_is_told(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.write(path)
    done = CliRunner().invoke(app, ["rehearse", str(path), "--machine", "laptop_2core"])
    assert isinstance(done.exception, SpecError)
    assert "8 ranks on laptop_2core, which has" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ({"samples": -1}, "--samples"),
        ({"days": 1e9}, "--days"),
        ({"background": 0.95}, "--background"),
        ({"jitter": "speed=1"}, "--jitter"),
        ({"jitter": "pass=-0.1"}, "--jitter"),
        ({"jitter": "pass=fast"}, "--jitter"),
        ({"slow_device": ("8:2",)}, "--slow-device"),
        ({"slow_device": ("1:0.5",)}, "--slow-device"),
        ({"slow_link": ("2:2",)}, "--slow-link"),
        ({"slow_link": ("node",)}, "--slow-link"),
    ],
)
def test_a_number_that_cannot_be_is_told(
    plan: Plan, tmp_path: Path, words: dict[str, object], where: str
) -> None:
    error = refused(plan, tmp_path, **words)
    assert error.where == where and error.fix


def test_a_rank_out_of_range_is_told_before_anything_is_built(plan: Plan) -> None:
    with pytest.raises(SpecError, match="ranks 0 to 7"):
        check_rank(8, plan)
    check_rank(7, plan)


def test_a_program_of_a_family_is_told(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.write(path)
    done = CliRunner().invoke(app, ["rehearse", str(path), "--rank", "0"])
    assert isinstance(done.exception, SpecError) and "--recipe" in done.exception.fix


def test_a_torn_plan_and_a_folder_that_is_not_there_are_told(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.write(path)
    path.write_text(path.read_text()[:500])
    assert isinstance(CliRunner().invoke(app, ["rehearse", str(path)]).exception, SpecError)
    plan.write(path)
    done = CliRunner().invoke(app, ["rehearse", str(path), "--html", str(tmp_path / "no" / "r")])
    assert isinstance(done.exception, SpecError) and "folder" in done.exception.found


def test_a_schedule_that_nobody_plays_is_told(plan: Plan, tmp_path: Path) -> None:
    assert plan.workload is not None
    odd = replace(plan, workload=replace(plan.workload, schedule="v_full"))
    path = tmp_path / "plan.json"
    odd.write(path)
    done = CliRunner().invoke(app, ["rehearse", str(path), "--no-flows"])
    assert isinstance(done.exception, SpecError) and "v_full" in done.exception.found


def test_jitter_in_words() -> None:
    assert Jitter.parse("0.03").pass_spread == 0.03
    assert Jitter.parse("none").device_spread == 0.0
    assert Jitter.parse("device=0.1, replica=0.2").replica_spread == 0.2
    assert json.dumps(Jitter.parse("").pass_spread)
