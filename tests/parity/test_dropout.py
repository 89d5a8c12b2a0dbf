"""Dropout drops what the serial program drops where ranks share samples, other things elsewhere."""

import pytest

from tests.parity.runs import Bench, distance, largest_relative

TOLERANCE = 1e-10


LAYOUTS = ("sequence=2", "sequence=2,sequence.attention=heads", "tensor=2", "tensor=2,sequence=2")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_that_share_samples_drop_the_same(bench: Bench, layout: str) -> None:
    serial = bench.train("dropped", "precision=float64")
    ours = bench.train("dropped", f"{layout},precision=float64")
    assert largest_relative(ours.losses, serial.losses) <= TOLERANCE
    assert distance(ours.parameters(), serial.parameters()) <= TOLERANCE


def test_ranks_with_other_samples_drop_other_things(bench: Bench) -> None:
    serial = bench.train("dropped", "precision=float64")
    ours = bench.train("dropped", "data=2,precision=float64")
    assert largest_relative(ours.losses, serial.losses) > 1e-4
