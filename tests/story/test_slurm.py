"""Does a run start, get interrupted, come back and end under a real Slurm, as a site's would?

Two nodes on this host (`slurm_cluster.py`); the site's file is made for the test, the rest is what
`armillary submit` writes for every Slurm site.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.story.jobs import TROUBLE, armillary, environment, losses, run, wait_for
from tests.story.slurm_cluster import cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SITE = """
title = "Slurm on one host"
scheduler = "slurm"
[num_nodes]
value = 2
source = "slurm_cluster.py"
[ranks_per_node]
value = 1
source = "made for a test"
[[limits]]
queue = "debug"
max_hours = 1
source = "slurm_cluster.py: MaxTime=60"
[start]
text = "srun --kill-on-bad-exit=1"
source = "made for a test"
[address]
text = "127.0.0.1"
source = "all its nodes are this host, and no name server knows them"
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    # Not pytest's folder: a socket's path has at most about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, cluster(Path(name)) as variables:
        yield variables


@pytest.fixture
def site(tmp_path: Path) -> str:
    path = tmp_path / "host.toml"
    path.write_text(SITE)
    return str(path)


def told(command: list[str], variables: dict[str, str]) -> str:
    """What one of Slurm's programs says."""
    done = subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_srun_starts_the_ranks_on_two_nodes(slurm: dict[str, str], tmp_path: Path) -> None:
    start = ["srun", "--kill-on-bad-exit=1", "-N2", "-n2", "--ntasks-per-node=1"]
    words = ["-m", "armillary.cli", "train", TROUBLE, "--layout", "data=2", "--quiet"]
    variables = slurm | {"MASTER_ADDR": "127.0.0.1"}
    done = run([*start, sys.executable, *words], tmp_path, variables)
    assert done.returncode == 0, done.stderr
    alone = run([sys.executable, *words, "--runs", "alone"], tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert losses(tmp_path / "runs") == losses(tmp_path / "alone")


def test_a_nodes_name_that_nobody_knows_is_told(slurm: dict[str, str], tmp_path: Path) -> None:
    """torch would look it up for minutes."""
    start = ["srun", "--kill-on-bad-exit=1", "-N2", "-n2", "--ntasks-per-node=1"]
    words = ["-m", "armillary.cli", "train", TROUBLE, "--layout", "data=2"]
    done = run([*start, sys.executable, *words], tmp_path, slurm)
    assert done.returncode != 0
    assert "'n1' (first node of SLURM_STEP_NODELIST) cannot be resolved" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_is_submitted_interrupted_and_goes_on(
    slurm: dict[str, str], tmp_path: Path, site: str
) -> None:
    words = ["submit", TROUBLE, "--site", site, "--nodes", "2", "--time", "10min"]
    words += ["--set", "pause_s=0.5"]
    job = armillary(*words, folder=tmp_path, variables=slurm)
    folder, number = Path(job["folder"]), job["number"]
    assert (folder.stat().st_mode & 0o077, job["ranks"]) == (0, 2)
    wait_for(lambda: bool(list(folder.glob("runs/*/checkpoints/step-*"))), "a checkpoint")
    status = armillary("status", str(folder), folder=tmp_path, variables=slurm)
    assert status["state"] == "RUNNING" and status["run"]["saved_step"] >= 2
    # As Slurm itself does before the end of the time.
    told(["scancel", "--batch", "--signal=USR1", number], slurm)
    log = folder / "output.log"
    wait_for(lambda: "back into the queue" in log.read_text(), "the requeue")
    wait_for(lambda: "PENDING" in told(["squeue", "-h", "-o", "%T"], slurm), "the job waits")
    told(["scontrol", "update", f"jobid={number}", "starttime=now"], slurm)
    lines = armillary("logs", "-f", str(folder), folder=tmp_path, variables=slurm)["lines"]
    assert any("finished: 24 steps" in line for line in lines)
    [metrics] = folder.glob("runs/*/metrics.jsonl")
    assert "resumed after step" in metrics.read_text(), "one run, in one folder"
    status = armillary("status", str(folder), folder=tmp_path, variables=slurm)
    assert status["state"] == "done (exit code 0)" and status["run"]["step"] == 24
    assert len(losses(folder / "runs")) == 24


def test_an_allocation_is_examined(slurm: dict[str, str], tmp_path: Path) -> None:
    """Two nodes of one rank each, which no name server knows."""
    command = ["srun", "--quiet", "-N2", "--ntasks-per-node=1", sys.executable, "-m"]
    words = ["armillary.cli", "doctor", "--launcher", "--json", "--machine", "alps"]
    done = run([*command, *words], tmp_path, slurm | {"MASTER_ADDR": "127.0.0.1"})
    found = json.loads(done.stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert (found["launcher"], found["num_ranks"], found["num_nodes"]) == ("slurm", 2, 2)
    assert checks["local ranks"]["found"] == "unique on every node; nodes: 2 of 1 rank"
    assert "n1 does not know n1, n2" in checks["names"]["found"]
    assert checks["clocks"]["state"] == "good" and "apart" in checks["clocks"]["found"]
    assert checks["folder runs"]["found"].startswith("seen by 2 nodes")
    assert "would give" in checks["fabric: all_reduce of all ranks"]["found"]
    assert found["is_well"] == (done.returncode == 0)
    sent = found["timings"]["send of 4 MiB"]
    assert sent["low"] <= sent["value"] <= sent["high"] and sent["num_samples"] == 60
    assert list((tmp_path / "runs").iterdir()) == [], "what it wrote is gone"


def test_what_sbatch_refuses_is_told(slurm: dict[str, str], tmp_path: Path, site: str) -> None:
    words = ["submit", TROUBLE, "--site", site, "--nodes", "1", "--time", "5min"]
    command = [sys.executable, "-m", "armillary.cli", *words, "--queue", "nowhere"]
    done = run(command, tmp_path, slurm)
    assert done.returncode == 2 and "nowhere" not in done.stdout
    assert "sbatch" in done.stderr and "partition" in done.stderr
