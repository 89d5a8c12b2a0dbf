"""Shares of a step: each position falls to one rank, and all ranks take as many turns."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from armillary.feeds import Share

STEPS = st.tuples(st.integers(0, 1000), st.integers(1, 200))


@given(STEPS, st.integers(1, 40), st.integers(0, 30))
def test_every_position_falls_to_one_share(
    step: tuple[int, int], count: int, micro_batch_size: int
) -> None:
    start, size = step
    shares = [
        Share(index=i, count=count, micro_batch_size=micro_batch_size).micro_batches(
            start, start + size
        )
        for i in range(count)
    ]
    found = [p for share in shares for batch in share for p in batch.tolist()]
    assert found == list(range(start, start + size)), "once each, and in order"
    assert len({len(share) for share in shares}) == 1, "as many collectives on every rank"
    sizes = [sum(len(batch) for batch in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    if micro_batch_size:
        assert all(len(batch) <= micro_batch_size for share in shares for batch in share)
    assert any(len(share[-1]) for share in shares), "no turn in which nobody works"


@given(STEPS, st.integers(1, 30))
def test_one_share_is_the_whole(step: tuple[int, int], micro_batch_size: int) -> None:
    start, size = step
    [whole] = Share().micro_batches(start, start + size)
    cut = Share(micro_batch_size=micro_batch_size).micro_batches(start, start + size)
    assert np.array_equal(whole, np.concatenate(cut))
