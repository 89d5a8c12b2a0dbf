"""The stages of one rank, driven by torch's own schedule: what is run when, and how often."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from armillary.axes.stages.driven import Driven
from armillary.axes.stages.foreseen import Foresight
from armillary.rehearse.program.build import Program
from armillary.rehearse.program.ledger import BACKWARD, BETWEEN, FORWARD, Ledger, Mark


class Action(NamedTuple):
    """A stage, and what it does with which micro batch: torch's letter for it; `then` is what the
    schedule sends, takes and gathers after it.
    """

    stage: int
    letter: str
    micro_batch: int
    then: tuple[str, ...] = ()

    @property
    def does(self) -> tuple[int, str]:
        """What is done, whatever the micro batch."""
        return self.stage, self.letter


KINDS = {"F": FORWARD, "B": BACKWARD, "I": BACKWARD, "W": BACKWARD}


class Pipeline:
    """The schedule of a rank: its actions in order, for any number of micro batches."""

    def __init__(self, driven: Driven, ledger: Ledger) -> None:
        self.driven, self.ledger = driven, ledger
        self.ran: list[Action] = []
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

    def actions(self, num_micro_batches: int) -> list[Action]:
        """What the stages of this rank do in a step, in order."""
        schedule, _ = self.driven.schedule_of(num_micro_batches)
        orders = getattr(schedule, "pipeline_order_with_comms", None)
        orders = orders or schedule._get_pipeline_order()
        return _acting(orders[self.driven.line.rank])

    def runs_backward_whole(self) -> bool:
        """Whether no backward pass is run in two halves, which blocks cannot stand in for."""
        return all(action.letter in "FB" for action in self.ran)

    def begin(self, num_micro_batches: int, *, folds: bool) -> int:
        """How many micro batches are to be run, all unless it `folds`.

        From then on the ledger hears of what the schedule for so many does.
        """
        number = self._fewest(num_micro_batches) if folds else num_micro_batches
        self.ran = self.ran or self.actions(number)
        self._listen(number)
        return number

    def _fewest(self, num_micro_batches: int) -> int:
        """The fewest micro batches whose step has every kind of action that the whole has."""
        actions = self.actions(num_micro_batches)
        wanted = set(kinds(actions))
        if actions == one_f_one_b(actions, num_micro_batches, _warm_up(actions)):
            for number in range(1, num_micro_batches):
                for warm_up in range(1, min(number, _warm_up(actions)) + 1):
                    shorter = one_f_one_b(actions, number, warm_up)
                    if set(kinds(shorter)) == wanted:
                        self._shorten(num_micro_batches, number, warm_up)
                        self.ran = shorter
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

    def _listen(self, num_micro_batches: int) -> None:
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
    return next((i for i, one in enumerate(actions) if one.letter != "F"), len(actions))


def one_f_one_b(actions: Sequence[Action], number: int, warm_up: int) -> list[Action]:
    """The order of 1F1B on the stage of `actions`: forward passes ahead, then in turn.

    Source: torch's `Schedule1F1B` (2.13); Narayanan et al. 2021, arXiv 2104.04473, section 2.2.1.
    """
    letters = ["F"] * warm_up + ["B", "F"] * (number - warm_up) + ["B"] * warm_up
    counted = {letter: itertools.count() for letter in "FB"}
    return [Action(actions[0].stage, letter, next(counted[letter])) for letter in letters]


def _is_allowed(pipeline: Pipeline, number: int) -> bool:
    try:
        pipeline.driven.schedule_of(number)
    except ValueError:  # torch's schedules refuse some numbers
        return False
    return True


def _acting(order: Iterable[Any]) -> list[Action]:
    """What stages compute, in order, each with what the schedule does besides before the next."""
    found: list[Action] = []
    for action in _single(order):
        stage, letter = action.stage_index, action.computation_type.value
        if letter in KINDS:
            found.append(Action(stage, letter, action.microbatch_index))
        elif found:
            before = found[-1]
            found[-1] = before._replace(then=(*before.then, f"{stage} {letter}"))
    return found


def _single(order: Iterable[Any]) -> Iterator[Any]:
    for action in order:
        if action is not None:
            yield from _single(action.sub_actions) if action.sub_actions else (action,)


def kinds(actions: Sequence[Action]) -> list[Any]:
    """By action what it is: itself, the ones before and after, and whether it is the first or the
    last of its stage.
    """
    does = [action.does for action in actions]
    first = {one: i for i, one in reversed([*enumerate(does)])}
    last = {one: i for i, one in enumerate(does)}
    before = [None, *((*action.does, action.then) for action in actions)]
    return [
        (one, actions[i].then, before[i], (*does[i + 1 : i + 2],), i == first[one], i == last[one])
        for i, one in enumerate(does)
    ]
