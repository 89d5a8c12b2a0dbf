"""Is a collective folded to one rank the collective played rank by rank?"""

import numpy as np
import pytest

from armillary.core import collectives as forms
from armillary.core import rounds
from armillary.core.collectives import Algorithm, LogGP
from armillary.core.rounds import Expansion

LOGGOPS = LogGP(latency=2500, overhead=1500, gap=1000, gap_per_byte=6)
ALIKE = [one for one in rounds.EXPANSIONS if one.fold is not None]


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8, 12, 16, 64])
@pytest.mark.parametrize("one", ALIKE, ids=lambda one: one.name)
def test_folded_is_expanded(one: Expansion, ranks: int) -> None:
    size = 96 * ranks * ranks
    if one.needs_power_of_two and ranks & (ranks - 1):
        with pytest.raises(ValueError, match="not alike"):
            rounds.folded_time(LOGGOPS, one, ranks, size)
        return
    expanded = rounds.expanded_time(LOGGOPS, one.expand(ranks, size), ranks)
    assert rounds.folded_time(LOGGOPS, one, ranks, size) == expanded


@pytest.mark.parametrize(
    ("one", "form"),
    [
        (rounds.RING_ALL_REDUCE, forms.RING_ALL_REDUCE),
        (rounds.RING_GATHER, forms.RING),
        (rounds.DOUBLING_ALL_REDUCE, forms.DOUBLING_ALL_REDUCE),
        (rounds.RABENSEIFNER, forms.RABENSEIFNER),
        (rounds.BRUCK_GATHER, forms.BRUCK_ALL_GATHER),
        (rounds.PAIRWISE, forms.PAIRWISE),
        (rounds.BRUCK, forms.BRUCK),
    ],
    ids=lambda one: one.name,
)
def test_rounds_send_what_the_closed_form_says(one: Expansion, form: Algorithm) -> None:
    ranks, size = 16, 16 * 16 * 64
    every = list(one.expand(ranks, size))
    sent = sum(int(part.size.sum()) for part in every) / ranks
    assert len(every) == form.steps(np.array([float(ranks)]))[0]
    assert sent / size == pytest.approx(float(form.sent(np.array([float(ranks)]))[0]))


@pytest.mark.parametrize("ranks", [2, 3, 5, 8, 13])
def test_a_tree_reaches_everyone_and_back(ranks: int) -> None:
    down = list(rounds.BINOMIAL.expand(ranks, 1))
    reached = {0}
    for one in down:
        assert set(one.source.tolist()) <= reached
        reached |= set(one.target.tolist())
    assert reached == set(range(ranks))
    both = rounds.expanded_time(LOGGOPS, rounds.TREE_ALL_REDUCE.expand(ranks, 64), ranks)
    assert both >= rounds.expanded_time(LOGGOPS, down, ranks)
    with pytest.raises(ValueError, match="not alike"):
        rounds.folded_time(LOGGOPS, rounds.BINOMIAL, ranks, 64)


def test_two_levels_send_less_far() -> None:
    ranks, size = 64, 2**20
    every = list(rounds.hierarchical(8, 8, size))
    far = sum(int(one.size[one.source // 8 != one.target // 8].sum()) for one in every)
    ring = list(rounds.RING_ALL_REDUCE.expand(ranks, size))
    assert sum(int(one.size.sum()) for one in every) / ranks == pytest.approx(
        2 * (7 / 8 + 7 / 64) * size
    )
    assert far == pytest.approx(2 * 7 / 8 * size * 8)
    ring_far = sum(int(one.size[one.source // 8 != one.target // 8].sum()) for one in ring)
    assert ring_far == pytest.approx(2 * 63 / 64 * size * 8)
    assert rounds.expanded_time(LOGGOPS, every, ranks) < rounds.expanded_time(LOGGOPS, ring, ranks)
