"""A job: what was asked for, its folder, and the words that its ranks run."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from armillary.spec import Document, SpecError

DOCUMENT, SCRIPT, LOG, EXIT_CODE, PLAN = (
    "job.json",
    "job.sh",
    "output.log",
    "exit_code",
    "plan.json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(Document):
    """A submitted job. `number` is the batch system's; empty where the script was only printed.
    `advice` is what its owner should think of before it runs.
    """

    what: ClassVar[str] = "job"
    name: str
    recipe: str
    site: str
    scheduler: str
    number: str = ""
    nodes: int
    ranks: int
    layout: str
    time_s: int
    created_utc: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobWords:
    """What a person asked for, in words.

    `always` are further words of `armillary train`, `train` those of a new run alone.
    """

    recipe: str
    site: str
    nodes: int
    time: str
    layout: str = ""
    plan: Path | None = None
    account: str = ""
    queue: str = ""
    container: str = ""
    options: Mapping[str, str]
    always: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    jobs: Path = Path("jobs")


def new_folder(jobs: Path, recipe: str) -> Path:
    """Where the next job of `recipe` will be kept; made only once it is submitted."""
    stem = Path(recipe).stem
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        path = (jobs / f"{stem}-{stamp}{suffix}").absolute()
        if not path.exists():
            return path
    raise SpecError("jobs", f"99 jobs named {stem}-{stamp}", "a job has a folder", "name another")


def keep(folder: Path, script: str, plan: Path | None) -> Path:
    """Make the job's folder, readable by its owner alone, and write script and plan into it.

    Raises: `SpecError` if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, mode=0o700)
        if plan is not None:
            shutil.copyfile(plan, folder / PLAN)
        path = folder / SCRIPT
        path.write_text(script, encoding="utf-8")
        path.chmod(0o700)
    except OSError as error:
        raise SpecError(
            "--jobs",
            f"{folder}: {error.strerror}",
            "the jobs folder can be written",
            "name another with --jobs",
        ) from None
    return path


def read_job(folder: Path) -> Job:
    """The job in `folder`."""
    return Job.read(folder / DOCUMENT)


def is_job(folder: Path) -> bool:
    """Whether `folder` holds a job."""
    return (folder / DOCUMENT).is_file()


def runs_of(folder: Path) -> list[Path]:
    """The run folders of a job, the newest last."""
    return sorted(path.parent for path in (folder / "runs").glob("*/manifest.json"))


def exit_code(folder: Path) -> int | None:
    """The exit code that the script left at its end, None while it has not."""
    path = folder / EXIT_CODE
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None
