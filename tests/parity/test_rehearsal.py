"""The fast play of a step beside a naive one, and folded steps beside expanded ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.core.play import Tasks, play
from armillary.rehearse.building import build
from armillary.rehearse.jitter import Jitter, sampled_steps
from tests.law.test_rehearsal import all_messages, links, message, workload


def naive(tasks: Tasks, capacity: list[float], slowdown: float) -> list[float]:
    """When every task ends: all rates anew after every event, nothing kept from before."""
    n = len(tasks)
    before = [set(after) for after in tasks.after]
    for line in tasks.streams:
        for place in range(1, len(line)):
            before[line[place]].add(line[place - 1])
    fixed, wire = list(tasks.fixed_s), list(tasks.wire_s)
    ends, clock, done = [-1.0] * n, 0.0, set[int]()
    while len(done) < n:
        running = [i for i in range(n) if i not in done and before[i] <= done]
        assert running, "they wait for one another"
        over = [i for i in running if fixed[i] <= 1e-12 and wire[i] <= 1e-12]
        if over:
            for i in over:
                ends[i] = clock
            done |= set(over)
            continue
        sending = [i for i in running if fixed[i] <= 1e-12]
        weight = [0.0] * len(capacity)
        for i in sending:
            for link, share in tasks.links[i]:
                weight[link] += share
        slow = {tasks.part[i] for i in running if tasks.slows[i]}
        rates = {}
        for i in running:
            if i in sending:
                shares = [capacity[link] / weight[link] for link, _ in tasks.links[i]]
                rates[i] = min([tasks.boost[i], *shares])
            else:
                rates[i] = 1 - slowdown if tasks.slowed[i] and tasks.part[i] in slow else 1.0
        left = {i: wire[i] if i in sending else fixed[i] for i in running}
        passed = min(left[i] / rates[i] for i in running)
        clock += passed
        for i in running:
            if i in sending:
                wire[i] -= passed * rates[i]
            else:
                fixed[i] -= passed * rates[i]
    return ends


@st.composite
def some_tasks(draw: st.DrawFn) -> tuple[Tasks, list[float], float]:
    """Tasks on a few streams, that wait for earlier ones and share a few links."""
    tasks = Tasks()
    streams = [tasks.add_stream() for _ in range(draw(st.integers(1, 4)))]
    capacity = [float(draw(st.integers(1, 3))) for _ in range(2)]
    for index in range(draw(st.integers(1, 14))):
        sends = draw(st.booleans())
        after = draw(st.lists(st.integers(0, index - 1), max_size=2, unique=True)) if index else []
        used = draw(st.lists(st.integers(0, 1), max_size=2, unique=True)) if sends else []
        part = draw(st.integers(0, 1))
        tasks.add(
            draw(st.sampled_from(streams)),
            draw(st.integers(0, 4)) / 2,
            after,
            wire_s=draw(st.integers(1, 4)) / 2 if sends else 0.0,
            boost=draw(st.sampled_from([1.0, 2.0])),
            links=[(link, float(draw(st.integers(1, 3)))) for link in used],
            part=part,
            slows=sends,
            slowed=not sends,
        )
    return tasks, capacity, draw(st.sampled_from([0.0, 0.25]))


@given(some_tasks())
@settings(max_examples=150, deadline=None)
def test_the_fast_play_is_the_naive_one(case: tuple[Tasks, list[float], float]) -> None:
    tasks, capacity, slowdown = case
    found = play(tasks, capacity, slowdown)
    assert found.end_s == pytest.approx(naive(tasks, capacity, slowdown), abs=1e-6)
    assert sorted(found.order) == list(range(len(tasks)))


def test_tasks_that_wait_for_each_other_are_told() -> None:
    tasks = Tasks()
    one, other = tasks.add_stream(), tasks.add_stream()
    tasks.add(one, 1.0, [1])
    tasks.add(other, 1.0, [0])
    with pytest.raises(ValueError, match="wait for one another"):
        play(tasks)


@pytest.mark.parametrize(
    "schedule", ["1f1b", "gpipe", "interleaved_1f1b", "zbv", "dualpipev", "v_half"]
)
@pytest.mark.parametrize("degrees", [(2, 2, 4), (4, 2, 2), (2, 8, 1), (2, 1, 8)])
@pytest.mark.parametrize("name", ["polaris", "alps"])
def test_a_folded_step_is_the_expanded_one(
    schedule: str, degrees: tuple[int, int, int], name: str
) -> None:
    pipeline, data, tensor = degrees
    given_ = {"pipeline": pipeline, "data": data, "tensor": tensor}
    messages = tuple(one for one in all_messages(8, pipeline) if given_[one.axis] > 1)
    load = workload(
        schedule,
        pipeline,
        messages=messages,
        degrees={axis: degree for axis, degree in given_.items() if degree > 1},
        batch_axes=("data",) if data > 1 else (),
        slowdown=0.1,
    )
    folded, expanded = build(load, links(load, name)), build(load, links(load, name), expanded=True)
    assert len(expanded.tasks) == len(folded.tasks) * data * tensor
    assert folded.play().step_s == pytest.approx(expanded.play().step_s, rel=1e-9)


@pytest.mark.parametrize("rank", [0, 3, 6, 15])
def test_a_slow_device_among_folded_ranks_is_as_among_all(rank: int) -> None:
    inside = message("tensor", "all_reduce", "activations", "forward", bytes=1e3, per_step=8.0)
    after = message("data", "all_reduce", "gradients", "", bytes=1e6, per_step=1.0)
    load = workload(messages=(inside, replace(inside, behind="backward"), after))
    folded, expanded = build(load, links(load)), build(load, links(load), expanded=True)
    slow = Jitter(pass_spread=0.0, device_spread=0.0, slow_devices={rank: 1.7})
    for index, label in enumerate(expanded.labels):
        player = expanded.players[label.coordinate][expanded.player_of[index]]
        if player == rank and label.kind in ("F", "B", "I", "W", "update"):
            expanded.tasks.fixed_s[index] *= 1.7
    found = sampled_steps(folded, folded.play(), slow, 1, 0)[0]
    assert found == pytest.approx(expanded.play().step_s, rel=1e-6)
    assert found > 1.05 * folded.play().step_s
