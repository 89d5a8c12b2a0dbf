"""A layout changes nothing that is computed: in float64 every loss and parameter is the same."""

import numpy as np
import pytest

from tests.parity.runs import Bench, Result, distance, largest_relative

TOLERANCE = 1e-10
LAYOUTS = ("data=2", "data=4", "sharded=2", "sharded=4", "data=2,sharded=2")


@pytest.fixture(scope="module")
def serial(bench: Bench) -> "Serial":
    return Serial(bench)


class Serial:
    """The serial run of a case, made when first asked for."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.known: dict[str, Result] = {}

    def __call__(self, case: str) -> Result:
        if case not in self.known:
            self.known[case] = self.bench.train(case, "precision=float64")
        return self.known[case]


def assert_equal(ours: Result, theirs: Result) -> None:
    assert largest_relative(ours.losses, theirs.losses) <= TOLERANCE
    assert distance(ours.parameters(), theirs.parameters()) <= TOLERANCE
    if theirs.folder.manifest.settings.clip_norm:
        norms = ours.column("grad_norm"), theirs.column("grad_norm")
        assert largest_relative(*norms) <= TOLERANCE
    for mine, other in zip(ours.evaluations, theirs.evaluations, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=TOLERANCE)
        assert mine["metrics"] == pytest.approx(other["metrics"], rel=TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["mlp", "sequences", "blocks", "twice"])
def test_every_layout_gives_the_serial_numbers(
    bench: Bench, serial: Serial, case: str, layout: str
) -> None:
    assert_equal(bench.train(case, f"{layout},precision=float64"), serial(case))


@pytest.mark.parametrize("layout", ["", "data=2", "data=4", "sharded=4", "data=2,sharded=2"])
@pytest.mark.parametrize("case", ["mlp", "sequences", "blocks"])
def test_micro_batches_give_the_serial_numbers(
    bench: Bench, serial: Serial, case: str, layout: str
) -> None:
    """3 divides neither the batch nor any share of it."""
    cut = f"{layout},precision=float64,micro_batch_size=3"
    assert_equal(bench.train(case, cut), serial(case))


@pytest.mark.parametrize("layout", ["", "data=2", "sharded=2", "data=2,sharded=2"])
def test_recomputing_gives_the_serial_numbers(bench: Bench, serial: Serial, layout: str) -> None:
    cut = f"{layout},precision=float64,recompute=full,micro_batch_size=5"
    assert_equal(bench.train("blocks", cut), serial("blocks"))


def test_the_cases_are_as_hard_as_they_claim(serial: Serial) -> None:
    """Batches end uneven and below the number of ranks, clipping clips, the schedule moves."""
    assert [line["samples"] for line in serial("mlp").lines if line["kind"] == "step"][3] == 2
    assert serial("sequences").column("samples")[3] == 1
    for case, clip_norm in (("sequences", 0.3), ("blocks", 0.5)):
        assert max(serial(case).column("grad_norm")) > clip_norm
    assert len(set(serial("blocks").column("learning_rate"))) == 4
    for case in ("mlp", "sequences", "blocks", "twice"):
        assert serial(case).losses[-1] != serial(case).losses[0]


@pytest.mark.parametrize("case", ["mlp", "sequences"])
def test_predictions_come_in_the_order_of_the_data(bench: Bench, serial: Serial, case: str) -> None:
    ours = bench.train(case, "data=4,precision=float64").folder.predictions("test")
    theirs = serial(case).folder.predictions("test")
    assert ours is not None and theirs is not None and ours.keys() == theirs.keys()
    for name, rows in theirs.items():
        for mine, other in zip(ours[name], rows, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-12)
