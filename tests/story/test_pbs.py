"""Does the script for a PBS site with PALS run, under a stand-in for both (pbs_stand_in.py)?

The sites are Aurora's and Polaris' own files, but for the addresses and the machines' size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from armillary.train.submit.site import SITES
from tests.story.jobs import TROUBLE, armillary, losses, run
from tests.story.pbs_stand_in import programs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SIZE = """
[num_nodes]
value = 2
source = "made for a test"
[ranks_per_node]
value = 1
source = "made for a test"
"""


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    return programs(tmp_path / "programs")


def made_small(name: str, folder: Path) -> str:
    """A site's own file, but that its nodes are this host."""
    text = (SITES / f"{name}.toml").read_text().replace("GLOO_SOCKET_IFNAME=hsn0", "A_FABRIC=none")
    before, _, after = text.partition("[address]\ntext = ")
    address, _, rest = after.partition("\n")
    assert address.startswith("'$(head"), "the file has its address where this test takes it out"
    path = folder / f"{name}.toml"
    path.write_text(f'{before}[address]\ntext = "127.0.0.1"\n{rest}{SIZE}')
    return str(path)


@pytest.fixture
def site(tmp_path: Path) -> str:
    return made_small("polaris", tmp_path)


@pytest.mark.parametrize(("name", "pmi"), [("polaris", {}), ("aurora", {"PMIX": "1"})])
def test_a_job_runs_to_its_end(
    variables: dict[str, str], name: str, pmi: dict[str, str], tmp_path: Path
) -> None:
    variables, site = variables | pmi, made_small(name, tmp_path)
    words = ["submit", TROUBLE, "--site", site, "--nodes", "2", "--time", "30min"]
    words += ["--account", "mine", "--queue", "debug", "--option", "filesystems=home"]
    job = armillary(*words, folder=tmp_path, variables=variables)
    folder = Path(job["folder"])
    assert job["number"] == "1.stand-in" and job["ranks"] == 2
    lines = armillary("logs", "-f", str(folder), folder=tmp_path, variables=variables)["lines"]
    status = armillary("status", str(folder), folder=tmp_path, variables=variables)
    assert status["state"] == "done (exit code 0)", lines
    alone = ["train", TROUBLE, "--layout", "data=2", "--quiet", "--runs", "alone"]
    done = run([sys.executable, "-m", "armillary.cli", *alone], tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(folder / "runs") == losses(tmp_path / "alone")


def test_off_the_site_the_script_is_still_printed(site: str, tmp_path: Path) -> None:
    words = ["submit", TROUBLE, "--site", site, "--nodes", "1", "--time", "1h"]
    words += ["--account", "mine", "--queue", "debug", "--option", "filesystems=home"]
    printed = armillary(*words, "--dry-run", folder=tmp_path)
    assert printed["script"].startswith("#!/bin/bash") and printed["folder"] is None
    done = run([sys.executable, "-m", "armillary.cli", *words], tmp_path)
    assert done.returncode == 2 and "qsub: not found" in done.stderr and "--dry-run" in done.stderr
    assert not (tmp_path / "jobs").exists()


def test_ranks_without_samples_are_told_before_they_are_paid_for(site: str, tmp_path: Path) -> None:
    words = ["submit", TROUBLE, "--site", site, "--nodes", "1", "--time", "1h", "--dry-run"]
    words += ["--account", "mine", "--queue", "debug", "--option", "filesystems=home"]
    enough = armillary(*words, "--set", "global_batch_size=1", folder=tmp_path)
    assert enough["ranks"] == 1 and not enough["advice"]
    words[words.index("--nodes") + 1] = "2"
    idle = armillary(*words, "--set", "global_batch_size=1", folder=tmp_path)
    assert "global_batch_size is 1, for 2 ranks to share: 1 have nothing to do" in idle["advice"]
    assert f"# Note: {idle['advice']}" in idle["script"]
