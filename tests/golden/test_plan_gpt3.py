"""One search whose outcome is known: GPT-3 on 1,024 A100 of Selene, the case of planners' papers.

Published: 175 B parameters, batch 1,536, 2,048 tokens (Narayanan et al. 2021, arXiv 2104.04473,
table 1), with tensor 8 and pipeline stages, full recomputing and optimiser states on every replica.
"""

from functools import cache

import pytest

from armillary.plan.request import PlanRequest, PlanWords, plan_request
from armillary.plan.why import why_not
from armillary.spec import Plan

GPT3 = "gpt:layers=96,hidden=12288,heads=96,seq=2048,vocab=51200"
FLOPS = 6 * 174.6e9 * 1536 * 2048
PEAK = 312e12


@cache
def request() -> PlanRequest:
    words = PlanWords(machine="selene", devices=1024, batch=1536)
    return plan_request(GPT3, words)


@cache
def plan() -> Plan:
    return request().make()


def test_the_chosen_layout_is_sound() -> None:
    made = plan()
    assert made.num_devices == 1024
    assert made.layout.precision == "bfloat16"
    assert made.layout.degree("tensor") <= 8, "tensor stays within a node"
    assert made.predicted_memory_bytes <= made.memory_limit_bytes
    least_s = FLOPS / PEAK / 1024
    assert least_s < made.predicted_step_s < 2.5 * least_s


def test_its_terms_are_mostly_computing_and_all_have_a_source() -> None:
    made = plan()
    computing = sum(t.predicted_s for t in made.terms if t.name in ("forward", "backward"))
    assert computing > 0.6 * made.predicted_step_s
    assert all(term.source for term in made.terms)
    assert {term.level for term in made.terms} <= {"hardware", "middleware", "algorithm"}


def test_the_published_layout_is_priced_beside_it() -> None:
    asked = "tensor=8,pipeline=16,recompute=full"
    wanted = request()
    answer = why_not(asked, plan(), wanted.target, wanted.machine, wanted.software, wanted.wish)
    assert answer.candidate is not None
    assert answer.candidate.predicted_step_s > plan().predicted_step_s
    assert answer.slower_s["recompute"] > 0 and answer.slower_s["bubble"] > 0


def test_strong_scaling_loses_and_weak_scaling_keeps_efficiency() -> None:
    strong = [p for p in plan().scaling if p.kind == "strong"]
    weak = [p for p in plan().scaling if p.kind == "weak"]
    assert max(p.predicted_efficiency for p in strong) == 1.0
    steps = [p.predicted_step_s for p in strong]
    assert steps == sorted(steps, reverse=True)
    assert weak[-1].predicted_efficiency > 0.9
    assert strong[0].num_devices < 1024 < strong[-1].num_devices == weak[-1].num_devices == 2048


def test_the_sweet_spot_does_at_least_four_fifths_of_the_best() -> None:
    made = plan()
    assert made.sweet_spot is not None
    cheapest = min(one.predicted_device_hours for one in made.frontier)
    assert cheapest / made.sweet_spot.predicted_device_hours >= 0.8 * (1 - 1e-9)


@pytest.mark.parametrize("field", ["predicted_device_hours", "predicted_memory_bytes"])
def test_the_frontier_holds_its_ends(field: str) -> None:
    made = plan()
    times = [one.predicted_step_s / one.predicted_goodput for one in made.frontier]
    assert times == sorted(times)
    assert made.frontier[0].predicted_step_s >= made.predicted_step_s * (1 - 1.1e-3)
    assert min(getattr(one, field) for one in made.frontier) <= getattr(made.best, field)
