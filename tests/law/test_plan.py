"""Laws of a plan: what must hold of any layout's price, whatever the model and machine."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.axes import discover
from armillary.models.families import parse
from armillary.networks.rates import with_endless_rates
from armillary.plan import software
from armillary.plan.choices import Fixed, all_choices, few_choices, orders_of
from armillary.plan.dealing import grids, placed
from armillary.plan.folding import fold
from armillary.plan.grid import Grid
from armillary.plan.planning import plan, score
from armillary.plan.price import Priced, price
from armillary.plan.pricing import Pricing
from armillary.plan.ranking import pareto, sweet_spot
from armillary.plan.rows import Refusals, divisors, find_rows
from armillary.plan.search import search
from armillary.plan.target import Target
from armillary.plan.terms import SECONDS, only
from armillary.plan.wish import Found, Wish
from armillary.spec import Layout, Machine, ModelGraph, Price, SpecError
from tests.contract.small_machines import level, machine, pods

BATCH = 64
AXES = [axis.name for axis in sorted(discover().values(), key=lambda axis: axis.order)]
BATCH_AXES = [name for name in AXES if discover()[name].splits_batch]
LAYOUTS = st.builds(
    lambda data, sharded, pipeline, tensor, sequence, micro, zero, recompute: Layout(
        degrees={
            "pipeline": pipeline,
            "data": data,
            "sharded": sharded,
            "sequence": sequence,
            "tensor": tensor,
        },
        options={"sharded.zero": zero},
        micro_batch_size=micro,
        precision="bfloat16",
        recompute=recompute,
    ),
    *(st.sampled_from([1, 2, 4]) for _ in range(5)),
    st.sampled_from([1, 2]),
    st.sampled_from(["1", "2", "3"]),
    st.sampled_from(["none", "selective", "full"]),
)
PROGRAM = software.load("armillary")


@cache
def small() -> ModelGraph:
    return parse("gpt:layers=8,hidden=512,heads=8,seq=256,vocab=1024")


def priced(layout: Layout, on: Machine, batch: int = BATCH) -> Priced:
    """One layout, priced alone."""
    alone = Grid.of(layout, AXES, layout.micro_batch_size)
    return price(small(), on, PROGRAM, alone, global_batch_size=batch)


def step_s(layout: Layout, on: Machine) -> float:
    return only(priced(layout, on).step_s)


def faster(on: Machine, factor: float) -> Machine:
    levels = [replace(one, link_bytes_per_s=one.link_bytes_per_s * factor) for one in on.levels]
    return replace(on, levels=tuple(levels))


@settings(max_examples=40, deadline=None)
@given(LAYOUTS, st.floats(1.0, 16.0))
def test_more_bandwidth_is_never_slower(layout: Layout, factor: float) -> None:
    assert step_s(layout, faster(pods(), factor)) <= step_s(layout, pods()) * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(LAYOUTS, st.sampled_from(["peak", "memory"]))
def test_a_better_device_is_never_slower(layout: Layout, what: str) -> None:
    """Of a device that its host feeds in time."""
    efficiency = replace(pods().device.efficiency, launch_s=0.0)
    device = replace(pods().device, efficiency=efficiency)
    if what == "peak":
        better = replace(device, peak_flops_per_s={"bfloat16": 2e15})
    else:
        better = replace(device, memory_bytes_per_s=2 * device.memory_bytes_per_s)
    before, after = (step_s(layout, replace(pods(), device=one)) for one in (device, better))
    assert after <= before * (1 + 1e-9)


def test_a_better_device_that_waits_for_its_host_is_never_slower() -> None:
    layout = Layout(
        degrees={"sharded": 2},
        options={"sharded.zero": "1"},
        micro_batch_size=1,
        precision="bfloat16",
    )
    device = pods().device
    better = replace(device, memory_bytes_per_s=2 * device.memory_bytes_per_s)
    assert step_s(layout, replace(pods(), device=better)) <= step_s(layout, pods()) * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(LAYOUTS)
def test_a_degree_of_one_is_free(layout: Layout) -> None:
    named = priced(layout, pods())
    left_out = replace(layout, degrees={n: d for n, d in layout.degrees.items() if d > 1})
    assert only(named.step_s) == only(priced(left_out, pods()).step_s)
    for name, column in named.terms.items():
        axis = name.partition(" ")[0]
        if layout.degrees.get(axis) == 1:
            assert only(column) == 0, name


def test_one_rank_sends_nothing() -> None:
    alone = priced(Layout(micro_batch_size=8, precision="bfloat16"), pods())
    assert all(only(column) == 0 for name, column in alone.terms.items() if name not in SECONDS)
    assert all(only(column) == 0 for column in alone.sent_bytes.values())


@settings(max_examples=40, deadline=None)
@given(LAYOUTS)
def test_floating_point_operations_are_conserved(layout: Layout) -> None:
    def total(one: Layout) -> float:
        found = priced(one, pods())
        ranks = np.prod([one.degree(name) for name in BATCH_AXES])
        micro = BATCH / (ranks * one.micro_batch_size)
        # `flops` are of a rank that holds all stages
        return only(found.flops) * micro * one.num_ranks / one.degree("pipeline")

    assert total(layout) == pytest.approx(
        total(Layout(micro_batch_size=1, precision="bfloat16")), rel=1e-9
    )


@settings(max_examples=25, deadline=None)
@given(LAYOUTS, st.permutations(["pipeline", "data", "sharded", "sequence", "tensor"]))
def test_permuted_rank_numbers_change_nothing_where_all_ranks_are_alike(
    layout: Layout, order: list[str]
) -> None:
    """Behind one switch every rank is as near to every other, however they are numbered."""
    flat = machine([level("machine", 1024, "switch", 5e10)], ranks_per_node=1024)
    other = replace(layout, degrees={name: layout.degrees[name] for name in order})
    assert step_s(other, flat) == pytest.approx(step_s(layout, flat), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(LAYOUTS)
def test_an_infinite_network_leaves_what_is_computed(layout: Layout) -> None:
    """What is left of messages is their start, which no rate makes shorter."""
    found, endless = priced(layout, pods()), priced(layout, with_endless_rates(pods()))
    for name, column in endless.terms.items():
        if name in ("forward", "backward", "recompute", "optimiser"):
            assert only(column) == only(found.terms[name])
    sent = sum(only(c) for name, c in endless.terms.items() if name not in SECONDS)
    num_messages = 4000  # of a step of 8 blocks, 64 micro batches at most, two passes
    assert sent <= num_messages * 64 * 3e-5


@settings(max_examples=25, deadline=None)
@given(LAYOUTS)
def test_terms_add_up(layout: Layout) -> None:
    found = priced(layout, pods())
    if np.isfinite(only(found.step_s)):
        assert sum(only(c) for c in found.terms.values()) == pytest.approx(only(found.step_s))
        total = sum(only(c) for c in found.memory.values())
        assert total == pytest.approx(only(found.memory_bytes))
    assert all(only(c) >= -1e-12 for c in (*found.terms.values(), *found.memory.values()))


# ----------------------------------------------------------------------------------- the search


def wish(num_devices: int, **more: object) -> Wish:
    given = {"global_batch_size": BATCH, "precisions": ("bfloat16",), "scales": False} | more
    return Wish(num_devices=num_devices, **given)  # type: ignore[arg-type]


@cache
def target() -> Target:
    return Target(name="small", graph=small())


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([1, 2, 6, 8, 12, 16]), st.sampled_from([8, 24, 64]))
def test_rows_are_tuples_that_the_axes_admit(num_devices: int, batch: int) -> None:
    rows = find_rows(small(), num_devices, batch, {})
    assert rows.num_rows
    assert (rows.num_devices <= num_devices).all()
    table = np.stack(list(rows.degrees.values()), axis=1)
    assert len(np.unique(table, axis=0)) == len(table)
    for row in table:
        layout = Layout(degrees=dict(zip(rows.degrees, map(int, row), strict=True)))
        ranks = np.prod([layout.degree(name) for name in BATCH_AXES])
        assert batch % ranks == 0
        for axis in discover().values():
            from armillary.spec.layouts import Layouts

            assert not any(r.refused.any() for r in axis.admits(small(), Layouts.of(layout)))


def test_every_exact_tuple_is_found_or_refused() -> None:
    """All ordered factorisations of 8 into six, some refused: none is lost."""
    rows = find_rows(small(), 8, BATCH, {}, fewer=False)
    num_ways = sum(
        1
        for a in divisors(8)
        for b in divisors(8 // a)
        for c in divisors(8 // a // b)
        for d in divisors(8 // a // b // c)
        for _ in divisors(8 // a // b // c // d)
    )
    expert = [r for r in rows.refused if "expert" in r.where]
    assert sum(r.count for r in rows.refused) == rows.num_refused
    # of the refused degrees of an axis that splits the batch only the least is joined with others
    assert rows.num_rows + rows.num_refused <= num_ways
    assert len(expert) == 1 and rows.num_rows > 30


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([2, 4, 8, 16]))
def test_more_devices_are_never_slower(num_devices: int) -> None:
    one, other = (
        plan(target(), pods(), PROGRAM, wish(n)).predicted_step_s
        for n in (num_devices, num_devices * 2)
    )
    assert other <= one * (1 + 1.1e-3)


def test_a_settled_choice_is_kept_and_costs_at_most_nothing() -> None:
    free = plan(target(), pods(), PROGRAM, wish(8))
    for words in ("tensor=4", "recompute=full", "pipeline=2,pipeline.schedule=gpipe"):
        fixed = Fixed.parse(words)
        settled = plan(target(), pods(), PROGRAM, wish(8, fixed=fixed))
        assert settled.predicted_step_s >= free.predicted_step_s * (1 - 1.1e-3)
        asked = Layout.parse(words)
        assert all(settled.layout.degree(a) == d for a, d in asked.degrees.items())
        assert settled.layout.recompute == asked.recompute or asked.recompute == "none"
        assert dict(asked.options).items() <= dict(settled.layout.options).items()


def test_a_plan_offers_nothing_that_train_does_not_do() -> None:
    for wide in (False, True):
        assert all_choices(Fixed(), ("bfloat16",), wide=wide).offloads == ("none",)


def winner(found: Found) -> Layout:
    """The fastest layout that was found."""
    first = int(found.contenders.step_s.argmin())
    grid = found.grids[int(found.contenders.grid[first])]
    return grid.layout(int(found.contenders.place[first]))


def test_scouting_finds_what_pricing_everything_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    from armillary.plan import search as module

    monkeypatch.setattr(module, "EXHAUSTIVE", 2**24)
    whole = search(small(), pods(), PROGRAM, wish(32))
    monkeypatch.setattr(module, "EXHAUSTIVE", 1)
    scouted = search(small(), pods(), PROGRAM, wish(32))
    assert scouted.search.num_layouts < whole.search.num_layouts
    assert winner(scouted) == winner(whole)
    assert scouted.contenders.memory_bytes.min() <= whole.contenders.memory_bytes.min() * 1.05


def test_without_messages_no_layout_is_slower_and_none_takes_other_memory() -> None:
    pricing = Pricing(fold(small()), pods(), PROGRAM, BATCH)
    free = Pricing(**pricing.subject, sends=False)
    degrees = find_rows(small(), 16, BATCH, {}).degrees
    choices = few_choices(all_choices(Fixed(), ("bfloat16",), wide=False))
    real, bound = (one.run(degrees, choices, Refusals()) for one in (pricing, free))
    fastest = {row: real.step_s[real.row == row].min() for row in np.unique(real.row)}
    assert all(bound.step_s[bound.row == row].min() <= s for row, s in fastest.items())
    assert bound.memory_bytes.min() == real.memory_bytes.min()


def test_the_chosen_layout_is_one_that_the_axes_admit_and_the_price_is_its_own() -> None:
    from armillary.axes import admit

    made = plan(target(), pods(), PROGRAM, wish(16))
    for one in (made.best, *made.runners_up, *made.frontier):
        admit(one.layout, small())
        alone = priced(one.layout, pods())
        assert only(alone.step_s) == pytest.approx(one.predicted_step_s)
        assert only(alone.memory_bytes) == pytest.approx(one.predicted_memory_bytes)
        assert one.predicted_memory_bytes <= pods().device.memory_bytes
        assert one.num_devices == one.layout.num_ranks
    assert sum(t.predicted_s for t in made.terms) == pytest.approx(made.predicted_step_s)
    memory = sum(t.predicted_bytes for t in made.memory)
    assert memory == pytest.approx(made.predicted_memory_bytes)


def test_each_objective_is_the_least_of_its_own() -> None:
    on = replace(pods(), price=Price(usd_per_device_hour=2.0))
    on = replace(on, device=replace(on.device, power_w=400.0, idle_power_w=60.0))
    best = {
        name: plan(target(), on, PROGRAM, wish(16, objective=name, uses_all=False)).best
        for name in ("time", "cost", "energy", "memory")
    }
    for name, field in {
        "time": "predicted_step_s",
        "cost": "predicted_usd",
        "energy": "predicted_energy_j",
        "memory": "predicted_memory_bytes",
    }.items():
        least = min(getattr(one, field) for one in best.values())
        assert getattr(best[name], field) <= least * (1 + 1.1e-3), name
    assert best["cost"].num_devices < best["time"].num_devices


def test_with_all_devices_wanted_cost_is_not_saved_by_using_one() -> None:
    made = plan(target(), pods(), PROGRAM, wish(16, objective="cost"))
    assert made.num_devices >= 14


# --------------------------------------------------------------------------- frontier and orders


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=1, max_size=40))
def test_none_beats_the_frontier_and_it_beats_the_rest(pairs: list[tuple[float, float]]) -> None:
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    edge = pareto(first, second)
    for i in range(len(pairs)):
        beaten = (first[edge] <= first[i]) & (second[edge] <= second[i])
        assert beaten.any()
    assert (np.diff(first[edge]) > 0).all() and (np.diff(second[edge]) < 0).all()


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=20), st.floats(0.1, 1.0))
def test_the_sweet_spot_is_the_fastest_that_is_cheap_enough(
    times: list[float], efficiency: float
) -> None:
    elapsed = np.array(times)
    cost = 1 + np.arange(len(times), dtype=np.float64)
    spot = sweet_spot(elapsed, cost, efficiency)
    assert cost[spot] <= cost.min() / efficiency * (1 + 1e-9)
    cheap = cost <= cost.min() / efficiency
    assert elapsed[spot] == elapsed[cheap].min()


def test_placements_keep_the_order_of_axes_that_must_keep_it() -> None:
    for wide in (False, True):
        found = orders_of(wide=wide)
        assert len(set(found)) == len(found)
        assert found[0] == tuple(AXES)
        for order in found:
            assert sorted(order) == sorted(AXES)
            kept = [name for name in order if name in BATCH_AXES]
            assert kept == [name for name in AXES if name in BATCH_AXES]


def test_a_placement_that_changes_no_stride_is_priced_once() -> None:
    degrees = {name: np.array([4 if name == "data" else 1, 2]) for name in AXES}
    rows, order, _ = placed(degrees, orders_of(wide=True), ranks_inside=8)
    assert (order[:2] == 0).all()
    assert all(len(column) == len(order) for column in rows.values())
    one_axis = rows["tensor"] == 1
    assert one_axis.sum() == 1  # replicas alone lie the same way in every order


def test_grids_hold_every_row_once_with_micro_batches_that_divide() -> None:
    rows = find_rows(small(), 16, BATCH, {})
    choices = all_choices(Fixed(), ("bfloat16",), wide=False)
    order = np.zeros(rows.num_rows, dtype=np.int64)
    kept = np.ones(rows.num_rows, dtype=bool)
    seen = [index for _, index in grids(rows.degrees, order, choices, BATCH, 2**12, kept)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(rows.num_rows))


def test_failures_make_large_jobs_dearer_than_their_steps() -> None:
    from armillary.plan.economy import Economy
    from armillary.spec import Failures, Storage

    on = replace(
        pods(),
        failures=Failures(device_hours_between=1000.0, restart_s=600.0),
        storage=Storage(write_bytes_per_s=1e9, read_bytes_per_s=1e9),
    )
    found = search(small(), on, PROGRAM, wish(16))
    scored = score(found.contenders, Economy.of(small(), on, PROGRAM, "bfloat16"))
    assert (scored.elapsed_s > found.contenders.step_s).all()
    few, many = (scored.goodput[found.contenders.num_devices == n].max() for n in (1, 16))
    assert many < few < 1


def test_nothing_fits_is_said_with_numbers() -> None:
    on = replace(pods(), device=replace(pods().device, memory_bytes=10**6))
    with pytest.raises(SpecError, match=r"needs .* a rank|alone exceed"):
        plan(target(), on, PROGRAM, wish(2))


def test_a_loss_is_cut_by_words_only_where_it_is_over_words() -> None:
    other = replace(
        small(),
        segments=tuple(
            replace(one, ops=tuple(op for op in one.ops if "nll" not in op.name))
            for one in small().segments
        ),
    )
    cut = {
        name: {
            found.layout(i).options.get("tensor.loss", "whole")
            for found in [search(graph, pods(), PROGRAM, wish(8, fixed=Fixed.parse("tensor=4")))]
            for i in range(len(found.contenders))
        }
        for name, graph in {"words": small(), "other": other}.items()
    }
    assert cut["other"] == {"whole"}
    assert "vocabulary" in cut["words"]


def test_of_equally_fast_layouts_the_one_on_fewer_devices_is_chosen() -> None:
    """A batch of one sample gives no rank that splits it anything to do."""
    one = plan(
        target(),
        pods(),
        PROGRAM,
        wish(16, global_batch_size=1, fixed=Fixed.parse("tensor=1,pipeline=1,sequence=1")),
    )
    assert one.num_devices == 1
    times = [c.predicted_step_s for c in one.runners_up]
    assert times == sorted(times)


def routed_s(degree: int, program: software.Software) -> Priced:
    """Experts over `degree` of 16 ranks that split the batch, each token sent to 8 of 32."""
    graph = parse(
        "moe:layers=4,hidden=256,heads=4,seq=128,vocab=512,experts=32,chosen=8,expert_ffn=64"
    )
    layout = Layout(
        degrees={"data": 16 // degree, "expert": degree},
        options={},
        micro_batch_size=4,
        precision="bfloat16",
    )
    alone = Grid.of(layout, AXES, layout.micro_batch_size)
    return price(graph, pods(), program, alone, global_batch_size=BATCH)


@pytest.mark.parametrize(("degree", "places"), [(8, 8), (16, 2)])
def test_a_token_sent_once_goes_to_as_many_ranks_or_nodes_as_hold_its_experts(
    degree: int, places: int
) -> None:
    usual, once = (
        only(routed_s(degree, replace(PROGRAM, sends_once=sends)).sent_bytes["expert activations"])
        for sends in (False, True)
    )
    assert once / usual == pytest.approx(places * (1 - (1 - 1 / places) ** 8) / 8)


def test_what_a_program_does_not_overlap_is_waited_for() -> None:
    waits, hides = (
        only(
            routed_s(8, replace(PROGRAM, hides_experts=0.5, overlaps_experts=does)).terms["expert"]
        )
        for does in (False, True)
    )
    assert hides == pytest.approx(0.5 * waits)
