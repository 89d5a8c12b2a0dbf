"""Laws of a pipeline's step: the closed forms are the recurrence, and waiting never pays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.core import events, pipeline
from armillary.core.pipeline import Passes

SECONDS = st.floats(0.5, 2.0)
SIMPLE = ("gpipe", "1f1b", "looped_bfs", "interleaved_1f1b")
TORCH = {
    "interleaved_1f1b": "ScheduleInterleaved1F1B",
    "looped_bfs": "ScheduleLoopedBFS",
    "interleaved_zero_bubble": "ScheduleInterleavedZeroBubble",
    "zbv": "ScheduleZBVZeroBubble",
    "dualpipev": "ScheduleDualPipeV",
}

KINDS = {
    "FORWARD": events.FORWARD,
    "FULL_BACKWARD": events.BACKWARD,
    "BACKWARD_INPUT": events.INPUT,
    "BACKWARD_WEIGHT": events.WEIGHT,
}


def stages_of(schedule: str, per_rank: int) -> int:
    return 1 if schedule in ("gpipe", "1f1b") else per_rank


def played(
    orders: list[events.Order], num_stages: int, passes: Passes, per_rank: int, hop_s: float = 0.0
) -> float:
    """Seconds of equal stages, each with its part of the passes of a rank."""
    ones = np.ones((1, num_stages)) / per_rank
    found = events.step_s(
        orders,
        ones * passes.forward_s,
        ones * passes.backward_input_s,
        ones * passes.backward_weight_s,
        hop_s,
    )
    return float(found[0])


def orders_of_torch(
    schedule: str, degree: int, per_rank: int, num_micro_batches: int
) -> list[events.Order]:
    from torch.distributed.pipelining import _schedule_visualizer, schedules

    found = _schedule_visualizer.get_schedule_ops(
        getattr(schedules, TORCH[schedule]), degree, num_micro_batches, per_rank, with_comms=False
    )
    return [[run for action in found[rank] for run in runs_of(action)] for rank in range(degree)]


def runs_of(action: object) -> list[events.Run]:
    """The passes of one action of torch: none, one, or those that it overlaps."""
    parts = getattr(action, "sub_actions", None)
    if parts:
        return [run for part in parts for run in runs_of(part)]
    kind = KINDS.get(getattr(getattr(action, "computation_type", None), "name", ""))
    if kind is None:
        return []
    return [events.Run(kind, action.stage_index, action.microbatch_index)]  # type: ignore[attr-defined]


@given(
    st.sampled_from(SIMPLE), st.integers(1, 5), st.integers(1, 3), st.integers(2, 4), SECONDS,
    SECONDS, SECONDS,
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_equal_stages_take_what_the_recurrence_says(
    schedule: str, degree: int, per_rank: int, rounds: int, f: float, b: float, w: float
) -> None:
    passes = Passes(forward_s=f, backward_input_s=b, backward_weight_s=w)
    per_rank = stages_of(schedule, per_rank)
    micro = rounds * degree
    orders = events.orders(schedule, degree, per_rank, micro)
    expected = played(orders, degree * per_rank, passes, per_rank)
    closed = pipeline.step_s(schedule, degree, per_rank, micro, passes, passes.total_s)
    assert float(closed) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", TORCH)
@pytest.mark.parametrize("lengths", [(1.0, 1.0, 1.0), (1.0, 1.2, 0.8), (1.0, 1.9, 1.0)])
def test_the_orders_of_torch_take_what_the_closed_forms_say(
    schedule: str, lengths: tuple[float, float, float]
) -> None:
    degree, per_rank, micro = 4, 2, 12
    passes = Passes(forward_s=lengths[0], backward_input_s=lengths[1], backward_weight_s=lengths[2])
    orders = orders_of_torch(schedule, degree, per_rank, micro)
    expected = played(orders, degree * per_rank, passes, per_rank)
    idle_s = expected - micro * passes.total_s
    closed = float(pipeline.idle_passes_s(schedule, degree, per_rank, passes))
    assert closed == pytest.approx(idle_s, rel=0.1 if schedule == "dualpipev" else 1e-6)


@pytest.mark.parametrize("schedule", TORCH)
@pytest.mark.parametrize(("degree", "micro"), [(1, 2), (2, 4), (3, 6), (4, 8), (4, 12), (5, 25)])
def test_our_orders_are_those_of_torch(schedule: str, degree: int, micro: int) -> None:
    theirs = orders_of_torch(schedule, degree, 2, micro)
    assert events.orders(schedule, degree, 2, micro) == theirs


def test_orders_of_uneven_rounds_are_those_of_torch() -> None:
    for schedule in ("interleaved_1f1b", "interleaved_zero_bubble"):
        assert events.orders(schedule, 4, 3, 20) == orders_of_torch(schedule, 4, 3, 20)


def test_what_torch_lacks_waits_for_the_first_filling_alone() -> None:
    degree, micro = 8, 24
    passes = Passes(forward_s=1.0, backward_input_s=1.0, backward_weight_s=1.0)
    orders = events.orders("zb_h2", degree, 1, micro)
    assert played(orders, degree, passes, 1) == micro * passes.total_s + degree - 1


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 6, 8, 16])
def test_v_half_takes_and_keeps_what_is_priced(degree: int) -> None:
    """Of equal passes: every pass once, the steady state without a gap, a filling and draining
    within a third of the form, and at most a half of a micro batch more kept.
    """
    of_micro = {}
    for micro in (3 * degree, 4 * degree):
        orders = events.orders("v_half", degree, 2, micro)
        passes = Passes(forward_s=1.0, backward_input_s=1.0, backward_weight_s=1.0)
        of_micro[micro] = played(orders, 2 * degree, passes, 2) - micro * passes.total_s
        kept = max(most_kept(order) for order in orders) / 2
        priced = pipeline.kept_micro_batches("v_half", degree, 2, micro)
        assert kept <= float(priced) + 0.5
        runs = {run for order in orders for run in order}
        assert len(runs) == sum(map(len, orders)) == 6 * degree * micro
    first, last = of_micro.values()
    assert first == pytest.approx(last)
    closed = float(pipeline.idle_passes_s("v_half", degree, 2, passes))
    assert closed <= last <= 4 / 3 * closed


def most_kept(order: events.Order) -> int:
    """How many passes of a rank wait for their gradients of parameters at once."""
    steps = [{"F": 1, "W": -1}.get(run.kind, 0) for run in order]
    return max(np.cumsum(steps))


@given(st.integers(2, 6), st.integers(2, 4), st.floats(1.0, 3.0), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_a_dear_stage_sets_the_pace(degree: int, rounds: int, dearer: float, place: int) -> None:
    micro = rounds * degree
    place = min(place, degree - 1)
    lengths = np.ones((1, degree))
    lengths[0, place] = dearer
    orders = events.orders("1f1b", degree, 1, micro)
    expected = float(events.step_s(orders, lengths, 2 * lengths, lengths)[0])
    mean = lengths.mean()
    passes = Passes(forward_s=mean, backward_input_s=2 * mean, backward_weight_s=mean)
    closed = float(pipeline.step_s("1f1b", degree, 1, micro, passes, 4 * dearer))
    assert micro * 4 * dearer <= expected <= closed * (1 + 1e-9)
    if place == degree - 1:  # where the head is
        assert closed == pytest.approx(expected, rel=1e-9)


@given(st.sampled_from(pipeline.SCHEDULES), SECONDS, SECONDS, SECONDS)
def test_one_rank_never_waits(schedule: str, f: float, b: float, w: float) -> None:
    passes = Passes(forward_s=f, backward_input_s=b, backward_weight_s=w)
    per_rank = stages_of(schedule, 2)
    assert float(pipeline.idle_passes_s(schedule, 1, per_rank, passes)) == 0.0
    found = pipeline.step_s(schedule, 1, per_rank, 7, passes, passes.total_s)
    assert float(found) == pytest.approx(7 * passes.total_s)


@given(st.integers(2, 8), SECONDS, st.floats(0.0, 1.0))
@settings(max_examples=20, deadline=None)
def test_a_hop_is_never_free_and_delays_at_most_once_a_pass(
    degree: int, f: float, hop: float
) -> None:
    passes = Passes(forward_s=f, backward_input_s=f, backward_weight_s=f)
    micro = 2 * degree
    orders = events.orders("1f1b", degree, 1, micro)
    near = played(orders, degree, passes, 1)
    far = played(orders, degree, passes, 1, hop)
    assert near <= far <= near + 2 * (micro + degree) * hop + 1e-9


@given(st.sampled_from(pipeline.SCHEDULES), st.integers(1, 16), st.integers(1, 64))
def test_a_rank_keeps_at_least_one_and_at_most_all(schedule: str, degree: int, micro: int) -> None:
    per_rank = stages_of(schedule, 2)
    kept = float(pipeline.kept_micro_batches(schedule, degree, per_rank, micro))
    assert min(1, micro) <= kept <= micro


def test_what_a_rank_keeps_is_what_its_order_runs_ahead() -> None:
    for schedule, per_rank in (("1f1b", 1), ("interleaved_1f1b", 2), ("interleaved_1f1b", 3)):
        for rank, order in enumerate(events.orders(schedule, 4, per_rank, 12)):
            ahead = most = 0
            for run in order:
                ahead += 1 if run.kind == events.FORWARD else -1
                most = max(most, ahead)
            kept = pipeline.kept_micro_batches(schedule, 4, per_rank, 12, rank)
            assert float(kept) == pytest.approx(most / per_rank)


def test_orders_that_wait_for_each_other_are_told() -> None:
    stuck = [[events.Run("B", 0, 0), events.Run("F", 0, 0)]]
    with pytest.raises(ValueError, match="wait for one another"):
        events.step_s(stuck, [[1.0]], [[1.0]], [[1.0]])
