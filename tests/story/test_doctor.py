"""Is an allocation examined by its own ranks, under the launchers that are here?

Slurm is in test_slurm.py; what each check finds, of allocations made up, in
tests/fault/test_allocations.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.story.jobs import program, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
DOCTOR = [sys.executable, "-m", "armillary.cli", "doctor", "--launcher"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_ranks_of_torchrun_examine_themselves(tmp_path: Path) -> None:
    done = run([*TORCHRUN, *DOCTOR[1:], "--machine", "laptop_2core"], tmp_path)
    assert "2 ranks on 1 node, started by torchrun; cpu" in done.stdout, done.stderr
    for words in ("local ranks: unique", "would give", "all_reduce of 8 B:", "store: none was"):
        assert words in done.stdout
    assert done.returncode == 0 or "wrong" in done.stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="ranks are bound on Linux alone")
def test_ranks_on_one_core_are_found(tmp_path: Path) -> None:
    """As a launcher leaves them that was told to bind by core and has one core to give."""
    bound = "import os; os.sched_setaffinity(0, {0}); from armillary.cli import main; main()"
    command = [program("mpiexec.hydra", "HYDRA"), "-n", "2", sys.executable, "-c", bound]
    done = run([*command, "doctor", "--launcher", "--json"], tmp_path, {"MASTER_PORT": "29631"})
    found = json.loads(done.stdout)
    [cores] = [check for check in found["checks"] if check["name"] == "cores"]
    assert cores["state"] == "wrong" and "2 ranks on 1 core" in cores["found"]
    assert done.returncode == 4 and not found["is_well"]
    assert found["timings"]["clock"]["unit"] == "Hz"


def test_who_is_alone_is_told_how(tmp_path: Path) -> None:
    done = run(DOCTOR, tmp_path)
    assert done.returncode == 2 and "srun armillary doctor --launcher" in done.stderr
