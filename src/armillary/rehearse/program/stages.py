"""The stages of one rank, driven by torch's own schedule: what is run when, and how often."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from armillary.axes.stages.driven import Driven
from armillary.axes.stages.foreseen import Foresight
from armillary.rehearse.program.build import Program
from armillary.rehearse.program.ledger import BACKWARD, BETWEEN, FORWARD, Ledger, Mark

Action = tuple[int, str]
"""A stage, and what it does with a micro batch: torch's letter for it."""
KINDS = {"F": FORWARD, "B": BACKWARD, "I": BACKWARD, "W": BACKWARD}


class Pipeline:
    """The schedule of a rank: its actions in order, for any number of micro batches."""

    def __init__(self, driven: Driven, ledger: Ledger) -> None:
        self.driven, self.ledger = driven, ledger

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

    def actions(self, num_micro_batches: int) -> list[Action]:
        """What the stages of this rank do in a step, in order."""
        schedule, _ = self.driven.schedule_of(num_micro_batches)
        orders = getattr(schedule, "pipeline_order", None) or schedule._get_pipeline_order()
        return [*_computing(orders[self.driven.line.rank])]

    def runs_backward_whole(self, num_micro_batches: int) -> bool:
        """Whether no backward pass is run in two halves, which blocks cannot stand in for."""
        return all(letter in "FB" for _, letter in self.actions(num_micro_batches))

    def fewest(self, num_micro_batches: int) -> int:
        """The fewest micro batches whose step has every kind of action that the whole has.

        From then on the ledger hears of what the schedule for so many does.
        """
        actions = self.actions(num_micro_batches)
        wanted = set(kinds(actions))
        if actions == one_f_one_b(actions, num_micro_batches, _warm_up(actions)):
            for number in range(1, num_micro_batches):
                for warm_up in range(1, min(number, _warm_up(actions)) + 1):
                    if set(kinds(one_f_one_b(actions, number, warm_up))) == wanted:
                        self._shorten(num_micro_batches, number, warm_up)
                        return number
            return num_micro_batches
        schedule = self.driven.fitting(num_micro_batches)
        for number in range(1, num_micro_batches):
            if self.driven.fitting(number) != schedule:
                continue
            if _is_allowed(self, number) and set(kinds(self.actions(number))) == wanted:
                return number
        return num_micro_batches

    def _shorten(self, num_micro_batches: int, number: int, warm_up: int) -> None:
        """Have torch's 1F1B schedule run `number` micro batches, `warm_up` of them ahead, as on a
        shorter pipeline: it asks for as many as it has stages.
        """
        schedule, held = self.driven.schedule_of(num_micro_batches)
        del self.driven.schedules[num_micro_batches]  # it is asked for its order again
        schedule._n_microbatches = number
        schedule._num_stages = held[0].stage_index + warm_up
        self.driven.schedules[number] = schedule, held

    def listen(self, num_micro_batches: int) -> None:
        """Have the schedule for so many micro batches tell of what its stages do."""
        _, held = self.driven.schedule_of(num_micro_batches)
        for stage in held:
            self._mark(stage, "forward_one_chunk", "F")
            self._mark(stage, "backward_one_chunk", "B")
            self._mark(stage, "backward_weight_one_chunk", "W")

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


def _warm_up(actions: Sequence[Action]) -> int:
    """How many forward passes come before the first backward pass."""
    return next((i for i, (_, letter) in enumerate(actions) if letter != "F"), len(actions))


def one_f_one_b(actions: Sequence[Action], number: int, warm_up: int) -> list[Action]:
    """The order of 1F1B on the stage of `actions`: forward passes ahead, then in turn.

    Source: torch's `Schedule1F1B` (2.13); Narayanan et al. 2021, arXiv 2104.04473, section 2.2.1.
    """
    letters = ["F"] * warm_up + ["B", "F"] * (number - warm_up) + ["B"] * warm_up
    return [(actions[0][0], letter) for letter in letters]


def _is_allowed(pipeline: Pipeline, number: int) -> bool:
    try:
        pipeline.driven.schedule_of(number)
    except ValueError:  # torch's schedules refuse some numbers
        return False
    return True


def _computing(order: Iterable[Any]) -> Iterable[Action]:
    for action in order:
        if action is None:
            continue
        if action.sub_actions:
            yield from _computing(action.sub_actions)
            continue
        letter = action.computation_type.value
        if letter in KINDS:
            yield action.stage_index, letter


def kinds(actions: list[Action]) -> list[Any]:
    """By action what it is: itself, the ones before and after, and whether it is the first or the
    last of its stage.
    """
    around = [None, *actions, None]
    first = {action: i for i, action in reversed([*enumerate(actions)])}
    last = {action: i for i, action in enumerate(actions)}
    return [
        (action, around[i], around[i + 2], i == first[action], i == last[action])
        for i, action in enumerate(actions)
    ]
