"""What every test stands on: one thread a rank, no launcher's variables, marks by folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.parity.ranks import Ranks
    from tests.parity.runs import Bench

REPOSITORY = Path(__file__).resolve().parents[1]

# Before torch is imported: several ranks on a few cores otherwise fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A test starts its own ranks; those of a job that the tests themselves run in are not theirs.
LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "PALS_", "TORCHELASTIC_", "FLUX_")
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
for _name in list(os.environ):
    if _name in RANKS or _name.startswith((*LAUNCHERS, "ARMILLARY_")):
        del os.environ[_name]

# The same examples every time: a law that fails here fails on the next machine too.
settings.register_profile("armillary", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("armillary")


def accelerator() -> str | None:
    """The kind of accelerator that torch can use here, or None."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and skip aloud those that need an accelerator."""
    for item in items:
        folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
        if folder in ("fault", "device"):
            item.add_marker(folder)
    needing = [item for item in items if item.get_closest_marker("device")]
    if needing and accelerator() is None:
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs an accelerator, and there is none"))


# What each of these starts for real, and the tests that tell by their names.
STARTERS = {
    "torchrun": ("test_doctor.py::test_ranks_of_torchrun",),
    "MPICH": ("[mpich]",),
    "Open MPI": ("[openmpi]",),
    "Intel MPI": ("[intelmpi]",),
    "Slurm": ("test_slurm.py",),
}


def _faults(terminalreporter: pytest.TerminalReporter) -> list[str]:
    """What tests of killed runs printed: faults injected and survived, samples lost or repeated."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if "fault/" in report.nodeid
    ]
    lines = [line for report in reports for line in report.capstdout.splitlines()]
    return [
        line
        for line in lines
        if line.startswith(("faults injected", "samples lost", "final weights"))
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which real launchers started ranks in these tests and which were not here, and what was
    survived.
    """
    for line in _faults(terminalreporter):
        terminalreporter.write_line(line)
    by_outcome = {
        outcome: [report.nodeid for report in terminalreporter.getreports(outcome)]
        for outcome in ("passed", "failed", "skipped")
    }
    told = []
    for name, marks in STARTERS.items():
        counts = {
            outcome: sum("story/" in one and any(mark in one for mark in marks) for one in ids)
            for outcome, ids in by_outcome.items()
        }
        if any(counts.values()):
            ran = counts["passed"] + counts["failed"]
            told.append(f"{name} {f'({ran})' if ran else 'NOT HERE, skipped'}")
    if told:
        terminalreporter.write_line(f"tests under real launchers: {', '.join(told)}")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of measured data beside the checkout; tests that read it are skipped without."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the measured data is not beside the checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """A pool of real ranks, started once for all tests that need no command line."""
    from tests.parity.ranks import Ranks

    pool = Ranks()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def bench(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Trains the cases of tests/parity on the pool of ranks."""
    from tests.parity.runs import Bench

    return Bench(ranks, tmp_path_factory.mktemp("runs"))
