"""The average of the parameters is the same on every layout, is what is evaluated, and resumes."""

import pytest

from tests.parity.runs import Bench, distance, largest_relative

TOLERANCE = 1e-10


@pytest.mark.parametrize("layout", ["data=2", "sharded=2", "data=2,sharded=2"])
def test_every_layout_gives_the_serial_average(bench: Bench, layout: str) -> None:
    serial = bench.train("blocks", "precision=float64", average_decay=0.7)
    ours = bench.train("blocks", f"{layout},precision=float64", average_decay=0.7)
    assert distance(ours.parameters(), serial.parameters()) <= TOLERANCE
    pairs = zip(ours.evaluations, serial.evaluations, strict=True)
    assert all(mine["loss"] == pytest.approx(other["loss"], rel=1e-10) for mine, other in pairs)


def test_it_is_the_average_that_is_evaluated_and_kept(bench: Bench) -> None:
    plain = bench.train("blocks", "precision=float64")
    averaged = bench.train("blocks", "precision=float64", average_decay=0.7)
    assert largest_relative(averaged.losses, plain.losses) == 0
    assert averaged.evaluations[-1]["loss"] != plain.evaluations[-1]["loss"]
    assert distance(averaged.parameters(), plain.parameters()) > 1e-4


def test_it_goes_on_after_a_stop(bench: Bench) -> None:
    whole = bench.train("blocks", "sharded=2,precision=float64", average_decay=0.7)
    part = bench.train("blocks", "sharded=2,precision=float64", stop_after=2, average_decay=0.7)
    ours = bench.resume(part.path, "data=2,precision=float64")
    assert distance(ours.parameters(), whole.parameters()) <= TOLERANCE
