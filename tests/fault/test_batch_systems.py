"""A batch system that gives no answer, or knows the job no more: neither is taken for the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from armillary.spec import SpecError
from armillary.train.submit.following import find, log_lines, status
from armillary.train.submit.job import Job
from armillary.train.submit.schedulers import named
from armillary.train.submit.schedulers.door import submitted


def stand_in(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


CASES = {
    "slurm": ("squeue", "slurm_load_jobs error: Invalid job id specified", "controller is down"),
    "pbs": ("qstat", "qstat: Unknown Job Id 7", "cannot connect to server"),
}


@pytest.fixture(params=CASES)
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "jobs" / "case-1"
    folder.mkdir(parents=True)
    Job(
        name="case-1", recipe="case.py", site="Ours", scheduler=request.param, number="7",
        nodes=1, ranks=2, layout="data=2", time_s=60, created_utc="2026-11-22T00:00:00+00:00",
    ).write(folder / "job.json")  # fmt: skip
    return folder


def test_an_answer_that_fails_is_not_the_end(job: Path, programs: Path) -> None:
    scheduler = Job.read(job / "job.json").scheduler
    name, gone, down = CASES[scheduler]
    stand_in(programs, name, f'echo "{down}" >&2; exit 1')
    assert status(job)["state"] == "not known" and status(job)["reason"] == down
    stand_in(programs, name, f'echo "{gone}" >&2; exit 1')
    assert named(scheduler).state("7") == {}
    assert status(job)["state"].startswith("gone before its end")
    (job / "exit_code").write_text("3\n")
    assert status(job)["state"] == "loss not finite (exit code 3)"


def test_a_log_ends_with_its_job(job: Path, programs: Path) -> None:
    name, gone, _ = CASES[Job.read(job / "job.json").scheduler]
    stand_in(programs, name, f'echo "{gone}" >&2; exit 1')
    assert list(log_lines(job, follow=True)) == [], "no log yet, and none to come"
    (job / "output.log").write_text("one\ntwo\nthr")
    assert list(log_lines(job, follow=False)) == ["one", "two", "thr"]
    assert list(log_lines(job, follow=True)) == ["one", "two", "thr"]


def test_what_is_not_there_is_said(tmp_path: Path, programs: Path) -> None:
    with pytest.raises(SpecError, match="holds no job"):
        find(None, tmp_path / "jobs")
    with pytest.raises(SpecError, match=r"neither job\.json"):
        find(programs, tmp_path / "jobs")
    with pytest.raises(SpecError, match="not found on this machine"):
        submitted(["qsub-that-is-nowhere", "x"])
    stand_in(programs, "qsub", 'echo "no such project" >&2; exit 1')
    with pytest.raises(SpecError, match="no such project"):
        submitted(["qsub", "x"])
