"""An optimiser that looks at a gradient as a matrix gives the serial numbers on shards too."""

import pytest

from tests.parity.runs import Bench, distance, largest_relative

TOLERANCE = 1e-10


@pytest.mark.parametrize("layout", ["data=2", "sharded=2", "data=2,sharded=2"])
def test_muon_gives_the_serial_numbers(bench: Bench, layout: str) -> None:
    serial = bench.train("matrix", "precision=float64")
    ours = bench.train("matrix", f"{layout},precision=float64")
    assert largest_relative(ours.losses, serial.losses) <= TOLERANCE
    assert distance(ours.parameters(), serial.parameters()) <= TOLERANCE


@pytest.mark.parametrize("layout", ["sharded=2", ""])
def test_its_state_moves_to_another_layout(bench: Bench, layout: str) -> None:
    """Muon orthogonalises in bfloat16. One flipped rounding, of a gradient that another layout sums
    in another order, moves an entry by a hundredth; a lost momentum moves it by a third.
    """
    whole = bench.train("matrix", "precision=float64")
    part = bench.train("matrix", "sharded=2,precision=float64", stop_after=3)
    ours = bench.resume(part.path, f"{layout},precision=float64")
    assert distance(ours.parameters(), whole.parameters()) <= (TOLERANCE if layout else 0.03)


def test_which_optimisers_look_at_matrices() -> None:
    import torch

    from armillary.step.whole_matrices import needs_whole_matrices

    weight = torch.nn.Parameter(torch.zeros(2, 2))
    told = torch.optim.SGD([weight])
    told.needs_whole_matrices = True  # type: ignore[attr-defined]
    assert needs_whole_matrices(torch.optim.Muon([weight])) and needs_whole_matrices(told)
    assert not needs_whole_matrices(torch.optim.AdamW([weight]))
