"""Ranks that live as long as the tests of this folder, for what needs no command line."""

from collections.abc import Iterator

import pytest

from tests.parity.ranks import Ranks
from tests.parity.runs import Bench


@pytest.fixture(scope="package")
def ranks() -> Iterator[Ranks]:
    """A pool of real ranks."""
    pool = Ranks()
    yield pool
    pool.close()


@pytest.fixture(scope="package")
def bench(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Trains cases on the pool of ranks."""
    return Bench(ranks, tmp_path_factory.mktemp("runs"))
