"""A job from its words: checked as `train` would check it, written, kept and submitted."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path

from armillary.axes import discover
from armillary.spec import SpecError
from armillary.train.submit.job import DOCUMENT, Job, JobWords, keep, new_folder
from armillary.train.submit.script import Asked, check, write_script
from armillary.train.submit.site import read_site


def submit(
    words: JobWords, assignments: Mapping[str, str], *, dry_run: bool
) -> tuple[Job, Path | None, str]:
    """(job, its folder, its script); with `dry_run` there is no folder, and nothing is submitted.

    Raises: `SpecError` on what the site, the recipe, the layout or the batch system refuses.
    """
    asked = check(words, read_site(words.site))
    words, batch_size = _checked_recipe(asked, assignments)
    asked = replace(asked, words=words, advice=_advice(asked, batch_size))
    folder = new_folder(words.jobs, words.recipe)
    script = write_script(asked, folder)
    job = Job(
        name=folder.name,
        recipe=words.recipe,
        site=asked.site.title,
        scheduler=asked.scheduler.name,
        nodes=asked.nodes,
        ranks=asked.num_ranks,
        layout=str(asked.layout),
        time_s=asked.time_s,
        advice=asked.advice,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if dry_run:
        return job, None, script
    if shutil.which(asked.scheduler.submits) is None:
        raise SpecError(
            asked.scheduler.submits,
            "not found on this machine",
            f"jobs of {asked.site.title} are submitted with {asked.scheduler.submits}",
            "run this on a login node of the site, or add --dry-run to see the script",
        )
    path = keep(folder, script, words.plan)
    job = replace(job, number=asked.scheduler.submit(str(path)))
    job.write(folder / DOCUMENT)
    return job, folder, script


def _checked_recipe(asked: Asked, assignments: Mapping[str, str]) -> tuple[JobWords, int]:
    """The words, after the recipe, its settings and the layout's axes were checked here, and the
    samples of a step.

    A file is named in full, since the job does not begin where this was typed.
    """
    from armillary.train.request import new_request

    words = asked.words
    request = new_request(words.recipe, layout=asked.layout, assignments=assignments, trackers=())
    return replace(words, recipe=request.recipe_word), request.settings.global_batch_size


def _advice(asked: Asked, batch_size: int) -> str:
    """What to do about ranks that would have no samples; empty if all have some."""
    axes = discover()
    shares = prod(n for axis, n in asked.layout.degrees.items() if axes[axis].splits_batch)
    if shares <= batch_size:
        return ""
    return (
        f"global_batch_size is {batch_size:,}, for {shares:,} ranks to share: "
        f"{shares - batch_size:,} have nothing to do; raise it, or ask `armillary plan` for a "
        "layout"
    )
