"""Laws of dealing blocks to the stages of a pipeline, and of what their ranks keep."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary import machines
from armillary.axes import discover
from armillary.models import families
from armillary.plan.grid import Grid
from armillary.plan.memory import kept_at
from armillary.plan.price import price
from armillary.plan.software import load
from armillary.plan.stages import DEALS, FOLDED, Dealt, deal
from armillary.spec import Layout

SCHEDULES = ("1f1b", "gpipe", "interleaved_1f1b", "looped_bfs", "interleaved_zero_bubble", "zbv")


def grid_of(ranks: int, schedule: str) -> Grid:
    words = f"pipeline={ranks},pipeline.schedule={schedule}"
    return Grid.of(Layout.parse(words), tuple(discover()), 1)


def dealt(num_blocks: int, ranks: int, schedule: str, head: float, deals: str) -> Dealt:
    grid = grid_of(ranks, schedule)
    return deal(grid, num_blocks, np.full((1,) * len(grid.shape), head), deals)


@given(st.integers(4, 60), st.integers(1, 4), st.floats(0.0, 6.0), st.sampled_from(DEALS[:2]))
def test_the_dearest_of_balanced_stages_is_as_cheap_as_can_be(
    num_blocks: int, ranks: int, head: float, deals: str
) -> None:
    places = dealt(num_blocks, ranks, "1f1b", head, deals)
    most, last = places.middle.blocks.item(), places.last.blocks.item()
    if ranks == 1:
        assert places.first.blocks.item() == last == num_blocks
        return
    best = min(
        max(math.ceil((num_blocks - n) / (ranks - 1)), n + head) for n in range(1, num_blocks)
    )
    assert max(most, last + head) <= best + 1e-9
    assert last + (ranks - 1) * most >= num_blocks, "every block lies somewhere"


@given(st.integers(2, 8), st.sampled_from(SCHEDULES), st.sampled_from(DEALS))
def test_what_is_before_and_after_the_blocks_lies_once(
    ranks: int, schedule: str, deals: str
) -> None:
    places = dealt(64, ranks, schedule, 1.0, deals)
    between = max(ranks - 2, 0)
    for name in ("before", "after"):
        parts = [getattr(place, name) for place in (places.first, places.middle, places.last)]
        first, middle, last = (float(np.ravel(part)[0]) for part in parts)
        assert first + between * middle + last == pytest.approx(1.0)
    if schedule in FOLDED and deals != "ends cut":
        assert float(np.ravel(places.first.after)[0]) == 1.0, "both ends lie on the first rank"


@given(st.integers(2, 8), st.sampled_from(SCHEDULES), st.integers(1, 6))
def test_later_ranks_keep_no_more(ranks: int, schedule: str, rounds: int) -> None:
    grid = grid_of(ranks, schedule)
    micro = np.full((1,) * len(grid.shape), float(rounds * ranks))
    kept = [float(np.ravel(kept_at(float(rank), grid, micro))[0]) for rank in range(ranks)]
    assert kept == sorted(kept, reverse=True)
    assert 0.0 < kept[-1] <= kept[0] <= rounds * ranks


def memory_bytes(schedule: str, per_rank: int, batch: int) -> float:
    words = f"pipeline=4,pipeline.schedule={schedule},pipeline.stages_per_rank={per_rank}"
    grid = Grid.of(Layout.parse(words), tuple(discover()), 1)
    graph = families.parse("gpt:layers=48,hidden=512,heads=8,seq=512,vocab=1024")
    machine, software = machines.load("selene"), load("armillary")
    return price(graph, machine, software, grid, global_batch_size=batch).memory_bytes.item()


@pytest.mark.parametrize(("schedule", "per_rank"), [("interleaved_1f1b", 6), ("zbv", 2)])
def test_more_micro_batches_take_no_more_memory(schedule: str, per_rank: int) -> None:
    """A schedule in rounds keeps a bounded number of micro batches on every rank, also the last."""
    few, many = (memory_bytes(schedule, per_rank, batch) for batch in (64, 256))
    assert few == pytest.approx(many)


def test_shorter_stages_keep_less() -> None:
    """Interleaved stages run 2 (p - 1 - rank) + (v - 1) p + 1 ahead, each 1 / v of a rank."""
    found = [memory_bytes("interleaved_1f1b", per_rank, 64) for per_rank in (2, 3, 6)]
    assert found == sorted(found, reverse=True)
