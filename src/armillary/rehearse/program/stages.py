"""The stages of one rank, driven by torch's own schedule: what is run when, and how often."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from armillary.axes.stages.driven import Driven
from armillary.axes.stages.foreseen import Foresight
from armillary.rehearse.program.build import Program
from armillary.rehearse.program.fewer import (
    GOES_WITH,
    Action,
    Deed,
    RankOrder,
    fewest,
    kinds,
    numbered,
)
from armillary.rehearse.program.ledger import BACKWARD, BETWEEN, FORWARD, Ledger, Mark

KINDS = {"F": FORWARD, "B": BACKWARD, "I": BACKWARD, "W": BACKWARD}


class Pipeline:
    """The schedule of a rank: its actions in order, for any number of micro batches."""

    def __init__(self, driven: Driven, ledger: Ledger) -> None:
        self.driven, self.ledger = driven, ledger
        self.ran = RankOrder((), ())
        """What the stages do in the step that is run."""

    @classmethod
    def of(cls, program: Program, ledger: Ledger) -> "Pipeline":
        """The schedule of a module that drives its steps, which tells `ledger` of its actions.

        The shapes that stages tell each other are those that the whole model was seen to make.
        """
        module: Any = program.module
        driven: Driven = module.forward_backward.__self__
        learn = driven.learn_shapes
        assert program.whole is not None and program.world.mesh is not None
        foresight = Foresight(driven.line, program.whole, program.world.mesh)

        def know(inputs: Any) -> None:
            for key in {driven.line.key(one) for one in inputs} - driven.line.known.keys():
                foresight.tell(key)
            left_out = len(program.case.sizes) - len(inputs)
            learn([*inputs, *inputs[-1:] * left_out])  # what it sends has a number for each

        driven.learn_shapes = know  # type: ignore[method-assign]
        return cls(driven, ledger)

    def order(self, num_micro_batches: int) -> RankOrder:
        """What the stages of this rank do in a step."""
        schedule, _ = self.driven.schedule_of(num_micro_batches)
        orders = getattr(schedule, "pipeline_order_with_comms", None)
        found = order_of((orders or schedule._get_pipeline_order())[self.driven.line.rank])
        # torch 2.13 counts the forward passes of 1F1B's last stage from 1
        return numbered(found, found.actions) or found

    def runs_backward_whole(self) -> bool:
        """Whether no backward pass is run in two halves, which blocks cannot stand in for."""
        return all(action.does.word in "FB" for action in self.ran.actions)

    def begin(self, num_micro_batches: int, *, folds: bool) -> int:
        """How many micro batches are to be run: all, unless it `folds`.

        From then on the ledger hears of what the schedule for so many does.
        """
        self.ran = self.order(num_micro_batches)
        number = self._shorten(num_micro_batches) if folds else num_micro_batches
        for stage in self.driven.schedule_of(number)[1]:
            self._mark(stage, "forward_one_chunk", "F")
            self._mark(stage, "backward_one_chunk", "B")
            self._mark(stage, "backward_weight_one_chunk", "W")
        return number

    def _shorten(self, num_micro_batches: int) -> int:
        """Have the schedule run as few micro batches as show every kind of action; so many."""
        base = num_micro_batches
        wanted = set(kinds(self.ran.actions))
        degree = self.driven.group.size()
        several = {3, 4, *(degree << i for i in range(num_micro_batches.bit_length()))}
        for number in sorted(n for n in several if n < num_micro_batches):
            if self._is_alike(number, num_micro_batches):
                shorter = self.order(number)
                if set(kinds(shorter.actions)) == wanted:
                    base, self.ran = number, shorter
                    break
        self.ran = fewest(self.ran)
        number = self.ran.num_micro_batches
        if number < base:
            self._put(base, number)
        return number

    def _is_alike(self, number: int, num_micro_batches: int) -> bool:
        """Whether torch runs so many micro batches by the same schedule."""
        if self.driven.fitting(number) != self.driven.fitting(num_micro_batches):
            return False
        try:
            self.driven.schedule_of(number)
        except ValueError:  # torch's schedules refuse some numbers
            return False
        return True

    def _put(self, base: int, number: int) -> None:
        """Have torch's schedule for `base` micro batches run those of `ran` alone."""
        schedule, held = self.driven.schedules.pop(base)
        schedule._n_microbatches = number
        if hasattr(schedule, "pipeline_order_with_comms"):
            rank = self.driven.line.rank
            schedule.pipeline_order_with_comms[rank] = [*planned_as(self.ran)]
        else:  # 1F1B: it asks for as many as it has stages after this
            ahead = next(i for i, one in enumerate(self.ran.actions) if one.does.word != "F")
            schedule._num_stages = held[0].stage_index + ahead
        self.driven.schedules[number] = schedule, held

    def _mark(self, stage: Any, name: str, letter: str) -> None:
        method = getattr(stage, name)

        @functools.wraps(method)
        def marked(chunk: int, *args: Any, **kwargs: Any) -> Any:
            did = "I" if kwargs.get("full_backward") is False else letter
            self.ledger.mark(Mark(KINDS[did], stage.stage_index, chunk, did))
            try:
                return method(chunk, *args, **kwargs)
            finally:
                self.ledger.mark(Mark(BETWEEN, stage.stage_index, chunk))

        setattr(stage, name, marked)


def order_of(planned: Iterable[Any]) -> RankOrder:
    """What torch's actions of a rank come to."""
    lead: list[Deed] = []
    found: list[Action] = []
    for action in _single(planned):
        deed = Deed(action.stage_index, action.computation_type.value)
        if deed.word in KINDS:
            found.append(Action(deed, action.microbatch_index))
        elif found:
            found[-1] = found[-1]._replace(then=(*found[-1].then, deed))
        else:
            lead.append(deed)
    return RankOrder((*lead,), (*found,))


def planned_as(order: RankOrder) -> Iterator[Any]:
    """`order` as torch's actions."""
    from torch.distributed.pipelining.schedules import _Action, _ComputationType

    for deed, micro_batch in order.deeds():
        is_of_one = deed.word in KINDS or deed.word in GOES_WITH
        kind = _ComputationType.from_str(deed.word)
        yield _Action(deed.stage, kind, micro_batch if is_of_one else None)


def _single(order: Iterable[Any]) -> Iterator[Any]:
    for action in order:
        if action is not None:
            yield from _single(action.sub_actions) if action.sub_actions else (action,)
