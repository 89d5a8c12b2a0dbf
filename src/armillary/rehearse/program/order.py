"""The passes of a whole step, each told by one that was run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from armillary.rehearse.program.fewer import Action, kinds
from armillary.rehearse.program.ledger import BETWEEN, OF_STEP, Ledger, Mark
from armillary.rehearse.program.stages import Pipeline


@dataclass(frozen=True, slots=True)
class Pass:
    """Events of a ledger from `start` up to `stop`, as they come in a whole step."""

    start: int
    stop: int
    mark: Mark


@dataclass(frozen=True, slots=True)
class Order:
    """All passes of a step in order; equal ones may be told by one that was run."""

    passes: tuple[Pass, ...]

    @classmethod
    def of(
        cls, ledger: Ledger, num_run: int, num_micro_batches: int, pipeline: Pipeline | None
    ) -> "Order":
        """The passes of a step of so many micro batches, `num_run` of which are in `ledger`."""
        run = _passes(ledger)
        if num_run == num_micro_batches:
            return cls(tuple(run))
        inside = [one for one in run if one.mark.micro_batch != OF_STEP]
        others = [one for one in run if one.mark.micro_batch == OF_STEP]
        if pipeline is None:
            return cls((*_repeated(inside, num_run, num_micro_batches), *others))
        loading = [one for one in inside if one.mark.name == "data"]
        acting = [one for one in inside if one.mark.name != "data"]
        whole = pipeline.order(num_micro_batches)
        order = _mapped(acting, pipeline.ran.actions, whole.actions)
        begin, *others = others
        loaded = _repeated(loading, num_run, num_micro_batches)
        return cls((*loaded, begin, *order, *others))


def _passes(ledger: Ledger) -> list[Pass]:
    """The passes that were run: each from its mark on, with what follows until the next."""
    begun = [(at, mark) for at, mark in ledger.marks if mark.kind != BETWEEN or mark.name]
    ends = [at for at, _ in begun[1:]] + [len(ledger.events)]
    return [Pass(at, end, mark) for (at, mark), end in zip(begun, ends, strict=True)]


def _repeated(run: list[Pass], num_run: int, num_micro_batches: int) -> list[Pass]:
    """Passes by micro batch, with those of the last but one as often as the whole step has them."""
    by_number: dict[int, list[Pass]] = {}
    for one in run:
        by_number.setdefault(one.mark.micro_batch, []).append(one)
    order = [*range(num_run - 1), *[num_run - 2] * (num_micro_batches - num_run), num_run - 1]
    return [_as_micro_batch(one, i) for i, number in enumerate(order) for one in by_number[number]]


def _mapped(run: list[Pass], ran: Sequence[Action], actions: Sequence[Action]) -> list[Pass]:
    """The passes of a whole schedule, each as one of its kind that was run."""
    by_kind: dict[Any, Pass] = {}
    for one, action, kind in zip(run, ran, kinds(ran), strict=True):
        assert tuple(action.does) == (one.mark.stage, one.mark.name)
        by_kind.setdefault(kind, one)
    return [
        _as_micro_batch(by_kind[kind], action.micro_batch)
        for action, kind in zip(actions, kinds(actions), strict=True)
    ]


def _as_micro_batch(one: Pass, number: int) -> Pass:
    mark = one.mark
    return Pass(one.start, one.stop, Mark(mark.kind, mark.stage, number, mark.name))
