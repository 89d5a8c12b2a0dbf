"""Do plan, verify, rehearse and train mean the same schedule of a pipeline?

What a plan admits is run as it is named; what is named and is not run so is refused by all.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary import machines
from armillary.axes import admit, discover
from armillary.axes.stages.balance import stages_per_rank
from armillary.axes.stages.fitting import fits, fitting
from armillary.models import families
from armillary.plan.choices import Fixed
from armillary.plan.grid import Grid
from armillary.plan.price import price
from armillary.plan.search import search
from armillary.plan.software import load
from armillary.plan.wish import Wish
from armillary.spec import Layout, SpecError
from armillary.step.world import count_micro_batches
from armillary.train.request import new_request
from armillary.train.start.admission import admit_before_ranks
from armillary.verify.check import as_verified

SCHEDULES = discover()["pipeline"].options["schedule"]
GRAPH = families.parse("gpt:layers=32,hidden=128,heads=8,seq=64,vocab=256")


def layout_of(schedule: str, degree: int) -> Layout:
    return Layout.parse(f"pipeline={degree},pipeline.schedule={schedule},micro_batch_size=1")


def is_admitted(layout: Layout, num_micro_batches: int) -> bool:
    try:
        admit(layout, GRAPH, num_micro_batches=num_micro_batches)
    except SpecError as refusal:
        assert refusal.where == "layout.pipeline.schedule"
        return False
    return True


def is_priced(layout: Layout, num_micro_batches: int) -> bool:
    grid = Grid.of(layout, tuple(discover()), 1)
    machine, software = machines.load("selene"), load("armillary")
    priced = price(GRAPH, machine, software, grid, global_batch_size=num_micro_batches)
    return bool(np.isfinite(priced.step_s).all())


@given(st.sampled_from(SCHEDULES), st.integers(2, 6), st.integers(1, 24))
def test_what_a_plan_admits_is_run_as_it_is_named(schedule: str, degree: int, number: int) -> None:
    layout = layout_of(schedule, degree)
    runs = fitting(schedule, degree, stages_per_rank(schedule, "auto"), number)
    assert is_admitted(layout, number) == (number == 1 or runs == schedule)
    if is_priced(layout, number):
        assert is_admitted(layout, number)


@given(st.sampled_from(SCHEDULES), st.integers(2, 6), st.integers(2, 24))
def test_what_is_run_instead_takes_them(schedule: str, degree: int, number: int) -> None:
    per_rank = stages_per_rank(schedule, "auto")
    assert fits(fitting(schedule, degree, per_rank, number), degree, per_rank, number)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_verify_proves_the_schedule_that_is_named(schedule: str) -> None:
    layout = Layout.parse(f"pipeline=4,pipeline.schedule={schedule}")
    number = count_micro_batches(as_verified(layout, 64), 64)
    assert fits(schedule, 4, stages_per_rank(schedule, "auto"), number)


@pytest.mark.parametrize(
    ("layout", "is_refused"),
    [
        ("pipeline=4,pipeline.schedule=1f1b,micro_batch_size=4", True),  # 2 on 4 stages
        ("pipeline=4,pipeline.schedule=gpipe,micro_batch_size=4", False),
        ("pipeline=4,pipeline.schedule=1f1b,micro_batch_size=8", False),  # 1 has one order
        ("pipeline=4,pipeline.schedule=1f1b", False),  # as many as the batch makes
        ("pipeline=4,micro_batch_size=4", False),  # none is named
    ],
)
def test_train_refuses_a_schedule_that_it_would_not_run(layout: str, is_refused: bool) -> None:
    assignments = {"global_batch_size": "8", "num_layers": "4", "hidden_size": "32"}
    request = new_request("gpt", layout=Layout.parse(layout), assignments=assignments)
    if not is_refused:
        admit_before_ranks(request)
        return
    with pytest.raises(SpecError, match="1f1b with 2 micro batches a step on 4 stages"):
        admit_before_ranks(request)
    admit_before_ranks(request, as_named=False)  # as a run goes on when ranks are lost


def test_a_plan_for_few_samples_names_what_runs() -> None:
    """With fewer micro batches than stages gpipe is planned, where one stage a rank is all."""
    wish = Wish(
        num_devices=4,
        global_batch_size=2,
        precisions=("bfloat16",),
        fixed=Fixed.parse("pipeline=4,micro_batch_size=1"),
    )
    graph = families.parse("gpt:layers=4,hidden=128,heads=8,seq=64,vocab=256")
    found = search(graph, machines.load("selene"), load("armillary"), wish)
    schedules = {found.layout(i).options["pipeline.schedule"] for i in range(len(found.contenders))}
    assert schedules == {"gpipe"}
