"""Laws of seconds and bytes: more device is never slower, one rank sends nothing, all is kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.core import compute, memory, overlap

RATES = compute.Rates(
    peak_flops_per_s=312e12,
    memory_bytes_per_s=2.0e12,
    element_bytes=2.0,
    matmul_start_s=4.5e-6,
    matmul_fraction=0.9,
    matmul_memory_fraction=0.7,
    half_rows=127.0,
    half_columns=143.0,
    half_inner=88.0,
    attention_fraction=0.5,
    stream_fraction=0.75,
    launch_s=5e-6,
)
SIZE = st.integers(1, 20000)
SECONDS = st.floats(0.0, 10.0)


@given(SIZE, SIZE, SIZE, st.sampled_from(["peak_flops_per_s", "memory_bytes_per_s"]))
def test_a_better_device_is_never_slower(m: int, n: int, k: int, what: str) -> None:
    better = RATES.scaled(**{what: 2.0})
    assert compute.matmul_s(m, n, k, 1, better) <= compute.matmul_s(m, n, k, 1, RATES)
    assert compute.attention_s(m * n, k, better) <= compute.attention_s(m * n, k, RATES)
    slow = compute.unfused_attention_s(m * n, k, 2.0, 5.5, RATES)
    assert compute.unfused_attention_s(m * n, k, 2.0, 5.5, better) <= slow


@given(SIZE, SIZE, SIZE)
def test_half_a_product_takes_less_but_no_less_than_half_without_its_start(
    m: int, n: int, k: int
) -> None:
    whole, half = (compute.matmul_s(r, n, k, 1, RATES) for r in (2 * m, m))
    assert half <= whole
    assert (whole - RATES.matmul_start_s) / 2 <= (half - RATES.matmul_start_s) * (1 + 1e-9)


def test_an_infinitely_fast_memory_leaves_the_products() -> None:
    free = RATES.scaled(memory_bytes_per_s=1e12)
    flops = 2.0 * 4096**3
    slower = (1 + 127 / 4096) * (1 + 143 / 4096) * (1 + 88 / 4096)
    expected = 4.5e-6 + flops * slower / (312e12 * 0.9)
    assert float(compute.matmul_s(4096, 4096, 4096, 1, free)) == pytest.approx(expected)


@given(SECONDS, SECONDS)
def test_a_pass_is_bound_by_device_or_host(busy: float, launch: float) -> None:
    found = busy + float(compute.waited_s(busy, launch))
    longer = max(busy, launch)
    assert longer * (1 - 1e-12) - 1e-12 <= found <= 1.2 * longer + 1e-12
    assert float(compute.waited_s(busy, 0.0)) == pytest.approx(0.0, abs=1e-12)


@given(st.integers(1, 16), st.integers(1, 64))
def test_a_token_is_at_most_at_all_places_and_at_least_at_one(copies: int, places: int) -> None:
    found = float(compute.deduplicated(copies, places))
    assert 1.0 - 1e-9 <= found <= min(copies, places) + 1e-9


@given(SECONDS, SECONDS, st.integers(1, 50))
def test_buckets_are_the_recurrence(sent: float, backward: float, buckets: int) -> None:
    end = 0.0
    for i in range(buckets):
        end = max(end, backward * (i + 1) / buckets) + sent / buckets
    assert float(overlap.bucketed_s(sent, backward, buckets)) == pytest.approx(
        end - backward, abs=1e-9
    )


@given(SECONDS, SECONDS, SECONDS, SECONDS, st.integers(1, 40))
def test_gathering_is_the_recurrence(f: float, b: float, g: float, s: float, blocks: int) -> None:
    expected = g + (blocks - 1) * (max(f, g) + max(b, g + s)) + f + b + g + s
    found = float(overlap.gathered_s(f, b, g, s, blocks))
    assert found == pytest.approx(expected - blocks * (f + b), abs=1e-7)


@given(SECONDS, SECONDS, st.integers(1, 40), st.floats(0.0, 1.0))
def test_hiding_less_is_never_faster(f: float, g: float, blocks: int, hidden: float) -> None:
    all_hidden = overlap.gathered_s(f, 2 * f, g, g, blocks)
    assert overlap.gathered_s(f, 2 * f, g, g, blocks, hidden) >= all_hidden
    assert float(overlap.gathered_s(f, 2 * f, 0.0, 0.0, blocks, hidden)) == 0.0


@given(st.integers(1, 10**12), st.integers(1, 1024))
def test_more_sharding_never_takes_more(parameters: int, shards: int) -> None:
    sizes = (2.0, 4.0, 12.0)
    totals = [
        sum(float(v) for v in memory.states_bytes(parameters, shards, z, *sizes).values())
        for z in range(4)
    ]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] == pytest.approx(18.0 * parameters)
    assert totals[3] == pytest.approx(18.0 * parameters / shards)


def test_the_fullest_rank_is_chosen_key_by_key() -> None:
    first = {"a": np.array([1.0, 9.0]), "b": np.array([1.0, 1.0])}
    last = {"a": np.array([5.0, 0.0]), "b": np.array([2.0, 3.0])}
    found = memory.fullest([first, last])
    assert found["a"].tolist() == [5.0, 9.0]
    assert found["b"].tolist() == [2.0, 1.0]
