"""What has become of a job or a run: its state, how far it is, and its log. Read without torch."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from armillary.spec import SpecError
from armillary.train.folder.run_folder import RunFolder
from armillary.train.submit.job import LOG, exit_code, is_job, read_job, runs_of
from armillary.train.submit.schedulers import named

ENDS = {0: "done", 1: "crashed", 2: "refused", 3: "loss not finite", 75: "interrupted"}
"""Exit codes of `armillary train`, as `armillary.cli.main` lists them."""
POLL_S = 0.5
ASK_EVERY_S = 10.0


def find(target: Path | None, jobs: Path) -> Path:
    """The folder of a job or run: the given one, or the newest job in `jobs`.

    Raises: `SpecError` if it holds neither.
    """
    if target is None:
        kept = sorted((path for path in jobs.glob("*") if is_job(path)), key=_made)
        if not kept:
            raise SpecError(
                "jobs",
                f"{jobs} holds no job",
                "a job is a folder that `armillary submit` made",
                "name a job's or a run's folder, or the jobs' with --jobs",
            )
        return kept[-1]
    if is_job(target) or (target / "manifest.json").is_file():
        return target
    raise SpecError(
        str(target),
        "neither job.json nor manifest.json is in it",
        "a job is made by `armillary submit`, a run by `armillary train`",
        "give the folder that one of them named",
    )


def _made(path: Path) -> float:
    return (path / "job.json").stat().st_mtime


def status(folder: Path) -> dict[str, Any]:
    """What is known of a job or a run: {"job": ..., "state": ..., "run": ...}."""
    if not is_job(folder):
        return {"run": _progress(folder)}
    job = read_job(folder)
    told = named(job.scheduler).state(job.number) if exit_code(folder) is None else {}
    runs = runs_of(folder)
    return {
        "job": str(folder),
        "number": job.number,
        "site": job.site,
        "ranks": job.ranks,
        "layout": job.layout,
        "state": told.get("state") or _end(folder),
        **{name: value for name, value in told.items() if name != "state"},
        "run": _progress(runs[-1]) if runs else None,
    }


def _end(folder: Path) -> str:
    """How a job ended that its batch system knows no more."""
    code = exit_code(folder)
    if code is None:
        return "gone before its end: killed, cancelled, or interrupted"
    return f"{ENDS.get(code, 'failed')} (exit code {code})"


def _progress(run: Path) -> dict[str, Any]:
    """How far a run is, from its metrics."""
    lines = RunFolder.open(run).metrics()
    steps = [line for line in lines if line["kind"] == "step"]
    saved = [path.name for path in (run / "checkpoints").glob("step-*")]
    events = [line for line in lines if line["kind"] == "event"]
    last = steps[-1] if steps else {}
    return {
        "run": str(run),
        "step": last.get("step", 0),
        "loss": last.get("loss"),
        "step_s": last.get("step_s"),
        "saved_step": max((int(name.removeprefix("step-")) for name in saved), default=None),
        "last_event": f"{events[-1]['what']}: {events[-1]['message']}" if events else "",
        "silent_s": round(time.time() - _written(run)),
    }


def _written(run: Path) -> float:
    path = run / "metrics.jsonl"
    return path.stat().st_mtime if path.is_file() else time.time()


def log_path(folder: Path) -> Path:
    """The file that a job's ranks print to, or a run's metrics."""
    return folder / LOG if is_job(folder) else folder / "metrics.jsonl"


def log_lines(folder: Path, *, follow: bool) -> Iterator[str]:
    """The lines of a log; with `follow` also those to come, until the job or run has ended."""
    path, position, asked_s = log_path(folder), 0, -ASK_EVERY_S
    while True:
        is_over = False
        if follow and time.monotonic() - asked_s > ASK_EVERY_S:
            is_over, asked_s = _is_over(folder), time.monotonic()
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                content = file.read()
            whole = content if is_over or not follow else content[: content.rfind(b"\n") + 1]
            position += len(whole)
            yield from whole.decode("utf-8", errors="replace").splitlines()
        if is_over or not follow:
            return
        if is_job(folder) and exit_code(folder) is not None:
            asked_s = -ASK_EVERY_S  # the last lines, and then no more
            continue
        time.sleep(POLL_S)


def _is_over(folder: Path) -> bool:
    """Whether nothing more will be written."""
    if is_job(folder):
        job = read_job(folder)
        return exit_code(folder) is not None or not named(job.scheduler).state(job.number)
    lines = RunFolder.open(folder).metrics()
    return bool(lines) and lines[-1].get("what") == "ended"
