"""Does verify catch every fault that is put into the real program, and name its axis?"""

import functools
from dataclasses import dataclass, field

import pytest

from armillary.axes import discover
from armillary.spec import Layout
from armillary.step.recipe import load_recipe
from armillary.verify.check import EQUAL, WRONG, Checker, Finding
from armillary.verify.prepare import prepare
from tests.parity.ranks import Ranks
from tests.parity.runs import CASES
from tests.parity.sabotage import Sabotage, all_faults, run_sabotaged

FAULTS = all_faults()


@dataclass(slots=True)
class Cases:
    """Checkers of the clean program, one a case, whose serial run serves the faults too."""

    ranks: Ranks
    clean: dict[str, Checker] = field(default_factory=dict)

    def of(self, sabotage: Sabotage) -> Checker:
        """The clean program that `sabotage` is put into."""
        key = f"{sabotage.case} {sabotage.options}"
        if key not in self.clean:
            recipe = load_recipe(str(CASES / f"{sabotage.case}.py"), sabotage.options)
            self.clean[key] = Checker(prepare(recipe), self.ranks)
        return self.clean[key]

    def sabotaged(self, sabotage: Sabotage) -> Checker:
        """The same program with the fault, against the same serial run."""
        clean = self.of(sabotage)
        job = functools.partial(run_sabotaged, sabotage.name)
        return Checker(
            clean.prepared, clean.ranks, job=job, _serial=clean.serial, _was_repeated=True
        )


@pytest.fixture(scope="module")
def cases(ranks: Ranks) -> Cases:
    return Cases(ranks)


def first_of(finding: Finding, kind: str) -> str:
    """What the worst tensor of a kind looks like."""
    return next(d.pattern for d in finding.differences if d.kind == kind)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_and_its_axis_named(cases: Cases, name: str) -> None:
    sabotage = FAULTS[name]
    layout = Layout.parse(sabotage.layout)
    clean = cases.of(sabotage).check(layout)
    assert clean.state == EQUAL, clean.reason or clean.differences[:3]
    found = cases.sabotaged(sabotage).check(layout)
    assert found.state == WRONG, found.reason
    assert found.suspects == sabotage.suspects
    assert sabotage.shows in first_of(found, sabotage.kind)
    assert found.worst > 1e-3, "a real fault is far above the tolerance"


REPORTED = {
    "NVIDIA/Megatron-LM": "7452 1446 673 1464 1754 5916",
    "deepspeedai/DeepSpeed": "8224 7718 7773 7837 5618",
    "pytorch/torchtitan": "2972 1733 2318 3412 1373",
    "pytorch/pytorch": "160285 162338",
    "huggingface/transformers": "34242 24725",
    "Lightning-AI/pytorch-lightning": "20385 6789",
}
"""Reports of gradients that were wrong without a word, each of which has a fault of its kind."""


def test_every_axis_is_sabotaged_as_it_was_elsewhere() -> None:
    assert {name for s in FAULTS.values() for name in s.suspects} >= set(discover())
    threads = " ".join(sabotage.thread for sabotage in FAULTS.values())
    for project, numbers in REPORTED.items():
        assert project in threads
        missing = [number for number in numbers.split() if f"#{number}" not in threads]
        assert not missing, project
    assert len(FAULTS) >= 40
