"""Laws of a rehearsed step: what it must be whatever the model and the machine."""

from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary import networks
from armillary.core import failures, pipeline
from armillary.core.chance import Slowest, run_goodput
from armillary.core.pipeline import Passes
from armillary.machines import load
from armillary.networks.rates import with_rates
from armillary.rehearse.accounts import critical_of, loads_of, terms_of
from armillary.rehearse.building import build
from armillary.rehearse.congestion import Congestion
from armillary.rehearse.jitter import Jitter, sampled_steps
from armillary.rehearse.links import Links
from armillary.rehearse.periods import step_of
from armillary.spec import Message, StageWork, Workload

SECONDS = st.floats(0.01, 0.1)
PER_RANK = {"1f1b": 1, "gpipe": 1}


def workload(
    schedule: str = "1f1b",
    degree: int = 4,
    micro: int = 8,
    stage: StageWork | None = None,
    messages: tuple[Message, ...] = (),
    **more: object,
) -> Workload:
    """Equal stages on a pipeline of `degree`, two replicas and two ranks that cut every op."""
    per_rank = PER_RANK.get(schedule, 2)
    one = stage or StageWork(forward_s=0.02, backward_input_s=0.02, backward_weight_s=0.02)
    values: dict[str, object] = {
        "degrees": {"pipeline": degree, "data": 2, "tensor": 2},
        "stages_axis": "pipeline",
        "batch_axes": ("data",),
        "schedule": schedule,
        "stages_per_rank": per_rank,
        "num_micro_batches": micro,
        "stages": (replace(one, num_stages=degree * per_rank),),
        "messages": messages,
    }
    return Workload(**(values | more))  # type: ignore[arg-type]


def message(axis: str, collective: str, carries: str, behind: str, **more: object) -> Message:
    values: dict[str, object] = {
        "axis": axis,
        "collective": collective,
        "group": (axis,),
        "carries": carries,
        "behind": behind,
        "bytes": 3e7,
        "per_step": 8.0,
    }
    return Message(**(values | more))  # type: ignore[arg-type]


def all_messages(micro: int = 8, degree: int = 4) -> tuple[Message, ...]:
    """One of each kind: inside passes, between stages, beside passes and after them."""
    hops = float(micro * (degree - 1))
    return (
        message("tensor", "all_reduce", "activations", "forward", per_step=2.0 * micro),
        message("tensor", "all_reduce", "activations", "backward", per_step=2.0 * micro),
        message("pipeline", "send", "activations", "forward", per_step=hops, crosses_stages=True),
        message("pipeline", "send", "activations", "backward", per_step=hops, crosses_stages=True),
        message("data", "all_reduce", "gradients", "backward", bytes=4e8, per_step=1, hidden=1.0),
        message("data", "all_gather_into_tensor", "parameters", "forward", per_step=2, hidden=0.8),
    )


def links(of: Workload, name: str = "polaris", factor: float = 1.0) -> Links:
    machine = load(name)
    return Links(with_rates(machine, factor) if factor != 1 else machine, of.degrees)


@given(
    st.sampled_from(["1f1b", "gpipe", "interleaved_1f1b", "looped_bfs", "zbv"]),
    st.integers(2, 4),
    st.integers(2, 4),
    SECONDS,
    SECONDS,
)
@settings(max_examples=20, deadline=None)
def test_without_messages_it_is_the_time_of_the_closed_form(
    schedule: str, degree: int, rounds: int, forward: float, back: float
) -> None:
    one = StageWork(forward_s=forward, backward_input_s=back, backward_weight_s=back)
    load_ = workload(schedule, degree, rounds * degree, one, update_s=0.01)
    per_rank = load_.stages_per_rank
    passes = Passes(
        forward_s=forward * per_rank,
        backward_input_s=back * per_rank,
        backward_weight_s=back * per_rank,
    )
    closed = pipeline.step_s(
        schedule, degree, per_rank, load_.num_micro_batches, passes, passes.total_s
    )
    found, _, _ = step_of(load_, links(load_))
    assert found == pytest.approx(float(closed) + 0.01, rel=1e-9)


@pytest.mark.parametrize("name", ["polaris", "alps", "aurora", "frontier"])
@pytest.mark.parametrize("axis", ["data", "tensor"])
@pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
def test_one_collective_alone_is_its_closed_form(name: str, axis: str, size: float) -> None:
    sent = message(axis, "all_reduce", "gradients", "", bytes=size, per_step=1.0)
    tiny = StageWork(forward_s=0.0, backward_input_s=0.0, backward_weight_s=0.0)
    load_ = workload(stage=tiny, messages=(sent,))
    on = links(load_, name)
    closed = float(networks.seconds(on.machine, "all_reduce", size, on.spans((axis,))))
    assert step_of(load_, on)[0] == pytest.approx(closed, rel=0.01)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "interleaved_1f1b", "zbv", "dualpipev"])
def test_more_bandwidth_is_never_slower(schedule: str) -> None:
    load_ = workload(schedule, messages=all_messages())
    found = [step_of(load_, links(load_, factor=f))[0] for f in (0.25, 0.5, 1, 2, 4, 16)]
    assert all(later <= before * (1 + 1e-9) for before, later in pairwise(found))
    assert found[0] > 1.1 * found[-1]


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b", "zbv"])
def test_links_carry_what_is_sent_and_never_more_than_they_can(schedule: str) -> None:
    load_ = workload(schedule, messages=all_messages())
    step = build(load_, links(load_))
    played = step.play()
    sent = np.zeros(len(step.link_names))
    for wire_s, taken in zip(step.tasks.wire_s, step.tasks.links, strict=True):
        for link, weight in taken:
            sent[link] += weight * wire_s
    assert np.allclose(played.link_s, sent)
    for link, (level, _) in enumerate(step.link_names):
        assert played.link_s[link] <= step.links.capacity(level) * played.step_s * (1 + 1e-9)
    assert all(0 <= one.mean <= one.busiest <= 1 for one in loads_of(step, played))


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "interleaved_1f1b", "zbv"])
def test_terms_and_critical_path_add_up_to_the_step(schedule: str) -> None:
    load_ = workload(schedule, messages=all_messages(), update_s=0.01, slowdown=0.1)
    found, step, played = step_of(load_, links(load_))
    terms = terms_of(step, played, found)
    assert sum(one.predicted_s for one in terms) == pytest.approx(found, rel=1e-6)
    critical = critical_of(step, played)
    assert sum(one.predicted_s for one in critical) == pytest.approx(played.step_s, rel=1e-6)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b", "zbv", "interleaved_zero_bubble"])
def test_a_step_folded_in_time_is_the_whole_step(schedule: str) -> None:
    load_ = workload(schedule, micro=64, messages=all_messages(64))
    whole, _, _ = step_of(load_, links(load_))
    folded, step, _ = step_of(load_, links(load_), most_passes=1)
    assert step.workload.num_micro_batches < 16
    assert folded == pytest.approx(whole, rel=2e-3)


@given(st.floats(1.0, 3.0), st.integers(0, 15))
@settings(max_examples=15, deadline=None)
def test_a_slow_device_slows_by_its_factor_at_most(factor: float, rank: int) -> None:
    load_ = workload(messages=all_messages())
    whole, step, played = step_of(load_, links(load_))
    slow = Jitter(pass_spread=0.0, device_spread=0.0, slow_devices={rank: factor})
    found = sampled_steps(step, played, slow, 1, 0)[0]
    assert whole * (1 - 1e-9) <= found <= whole * factor * (1 + 1e-9)
    assert factor < 1.01 or found > whole


def test_without_jitter_all_samples_are_the_step_and_with_it_a_seed_gives_the_same() -> None:
    load_ = workload(messages=all_messages())
    whole, step, played = step_of(load_, links(load_))
    still = sampled_steps(step, played, Jitter.parse("none"), 5, 0)
    assert still == pytest.approx(whole, rel=1e-9)
    jitter = Jitter.parse("pass=0.05,device=0.02")
    one, same = (sampled_steps(step, played, jitter, 40, 3) for _ in range(2))
    assert (one == same).all()
    assert one.std() > 0 and np.median(one) > whole
    more = sampled_steps(step, played, jitter.scaled(2.0), 40, 3)
    assert np.median(more) > np.median(one)
    shared = replace(Jitter.parse("none"), background=0.3)
    assert np.median(sampled_steps(step, played, shared, 40, 3)) > whole


def test_the_largest_of_many_is_drawn_from_its_own_distribution() -> None:
    rng = np.random.default_rng(0)
    for number in (1, 4, 64, 10_000):
        drawn = Slowest().draw(number, (4000,), rng)
        least = np.sqrt(2 * np.log(number)) if number > 1 else 0.1
        assert drawn.mean() <= least + 0.1
    direct = rng.standard_normal((20_000, 8)).max(axis=1)
    assert Slowest().draw(8, (20_000,), rng).mean() == pytest.approx(direct.mean(), abs=0.02)


@given(st.floats(2e3, 1e5), st.floats(0.0, 120.0), st.floats(0.0, 600.0))
@settings(max_examples=15, deadline=None)
def test_days_of_failures_leave_what_the_closed_form_says(
    between: float, saves: float, restart: float
) -> None:
    interval = float(failures.daly_interval_s(max(saves, 1.0), between))
    closed = float(failures.goodput(interval, saves, restart, between))
    share, failed = run_goodput(
        step_s=interval / 50,
        days=20.0,
        between_s=between,
        interval_s=interval,
        checkpoint_s=saves,
        restart_s=restart,
        num_runs=200,
        rng=np.random.default_rng(1),
    )
    assert share.mean() == pytest.approx(closed, abs=0.015)
    assert failed.mean() == pytest.approx(20 * 86400 / between, rel=0.1)


def test_nothing_that_fails_and_nothing_that_saves_leaves_all() -> None:
    share, failed = run_goodput(
        step_s=1.0,
        days=3.0,
        between_s=np.inf,
        interval_s=np.inf,
        checkpoint_s=0.0,
        restart_s=0.0,
        num_runs=3,
        rng=np.random.default_rng(0),
    )
    assert (share == 1.0).all() and (failed == 0).all()


def test_flows_are_found_once_a_group_and_are_what_the_network_says() -> None:
    machine = load("aurora")
    load_ = workload(degrees={"pipeline": 4, "data": 16, "tensor": 24})
    congestion = Congestion(machine=machine, num_ranks=prod(load_.degrees.values()))
    on, plain = Links(machine, load_.degrees, congestion=congestion), Links(machine, load_.degrees)
    sent = on.cost("all_gather_into_tensor", 2e8, on.spans(("tensor",)))
    closed = plain.cost("all_gather_into_tensor", 2e8, on.spans(("tensor",)))
    ratio = congestion.ratio("all_gather_into_tensor", 2e8, on.spans(("tensor",)))
    assert sent.wire_s == pytest.approx(ratio * closed.wire_s)
    on.cost("reduce_scatter_tensor", 4e8, on.spans(("tensor",)))
    assert len(congestion.known) == 1
