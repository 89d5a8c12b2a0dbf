"""A job under a real Slurm that loses its node, is preempted, or runs out of time: it goes on."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.story.jobs import TROUBLE, armillary, environment, losses, wait_for
from tests.story.slurm_cluster import cluster
from tests.story.test_slurm import SITE, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NUM_STEPS = 24


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, cluster(Path(name)) as variables:
        yield variables


def _submit(
    slurm: dict[str, str], folder: Path, time: str = "10min", pause_s: float = 0.5
) -> tuple[Path, str]:
    """A job that has saved something: its folder and number."""
    site = folder / "host.toml"
    site.write_text(SITE)
    words = ["submit", TROUBLE, "--site", str(site), "--nodes", "2", "--time", time]
    job = armillary(*words, "--set", f"pause_s={pause_s}", folder=folder, variables=slurm)
    home = Path(job["folder"])
    wait_for(lambda: bool(list(home.glob("runs/*/checkpoints/step-*"))), "a checkpoint")
    return home, job["number"]


def _goes_on(slurm: dict[str, str], home: Path, number: str) -> None:
    """The job is in the queue again, and its second life ends the same run."""
    log = home / "output.log"

    def is_over() -> bool:
        if "PENDING" in told(["squeue", "-h", "-j", number, "-o", "%T"], slurm):
            # Slurm itself would let it wait for two minutes; it may have begun in this moment.
            hurry = ["scontrol", "update", f"jobid={number}", "starttime=now"]
            subprocess.run(hurry, env=environment(**slurm), capture_output=True, timeout=60)
        return f"finished: {NUM_STEPS} steps" in log.read_text()

    wait_for(is_over, "the end of the run")
    [metrics] = home.glob("runs/*/metrics.jsonl")
    assert "resumed after step" in metrics.read_text()
    assert len(losses(home / "runs")) == NUM_STEPS, "no step lost or done twice"


def test_a_lost_rank_is_started_again_in_the_job(slurm: dict[str, str], tmp_path: Path) -> None:
    """srun ends the others; the script starts all again, on the nodes that it has."""
    home, number = _submit(slurm, tmp_path)
    [victim, *_] = told(["pgrep", "-f", f"armillary.cli train .*{home.name}"], slurm).split()[-1:]
    told(["kill", "-KILL", victim], slurm)
    log = home / "output.log"
    wait_for(lambda: "they are started again" in log.read_text(), "the restart")
    _goes_on(slurm, home, number)


def test_a_node_that_goes_down_is_survived(slurm: dict[str, str], tmp_path: Path) -> None:
    """Slurm puts the job back into the queue by itself, and it goes on when the node is back."""
    home, number = _submit(slurm, tmp_path)
    told(["scontrol", "update", "nodename=n2", "state=down", "reason=test"], slurm)
    wait_for(lambda: "PENDING" in told(["squeue", "-h", "-o", "%T"], slurm), "the requeue")

    def is_back() -> bool:
        """A node may come back by itself, and is then not to be resumed."""
        if "down" in told(["sinfo", "-h", "-n", "n2", "-o", "%T"], slurm):
            told(["scontrol", "update", "nodename=n2", "state=resume"], slurm)
        return "idle" in told(["sinfo", "-h", "-n", "n2", "-o", "%T"], slurm)

    wait_for(is_back, "the node's return")
    _goes_on(slurm, home, number)


def test_the_end_of_the_time_is_survived(slurm: dict[str, str], tmp_path: Path) -> None:
    """Slurm's own signal before the end, with no hand: a job of one minute told 15 s before."""
    home, number = _submit(slurm, tmp_path, "1min", pause_s=1.5)
    log = home / "output.log"
    wait_for(lambda: "back into the queue" in log.read_text(), "the requeue")
    _goes_on(slurm, home, number)


def test_a_preemption_is_survived(slurm: dict[str, str], tmp_path: Path) -> None:
    """A job of a partition of higher priority takes both nodes for a moment."""
    home, number = _submit(slurm, tmp_path)
    words = [
        "sbatch",
        "--parsable",
        "--partition=urgent",
        "-N2",
        "--exclusive",
        "--wrap",
        "sleep 3",
    ]
    done = subprocess.run(
        words, env=environment(**slurm), capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stderr
    log = home / "output.log"
    wait_for(lambda: "interrupted; saved" in log.read_text(), "the ranks save and leave")
    urgent = done.stdout.strip()
    wait_for(lambda: urgent not in told(["squeue", "-h", "-o", "%i"], slurm), "the other's end")
    _goes_on(slurm, home, number)
