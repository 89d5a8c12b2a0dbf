"""One optimiser step of a program, run on tensors without values and written into a ledger.

It is the step of `train` (`step/stepper.py`); a module that drives its steps runs torch's own
schedule. Of many equal micro batches the fewest are run that show all that a step does.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from armillary.axes import DrivesSteps
from armillary.axes.door import parts
from armillary.rehearse.program.blocks import Run, own_units
from armillary.rehearse.program.build import Program, refusing_values
from armillary.rehearse.program.halves import telling_weights
from armillary.rehearse.program.ledger import (
    BACKWARD,
    BETWEEN,
    FORWARD,
    OF_STEP,
    OPTIMISER,
    Ledger,
    Mark,
)
from armillary.rehearse.program.like import plain
from armillary.rehearse.program.messages import Groups
from armillary.rehearse.program.order import Order
from armillary.rehearse.program.shortened import Short, is_here, note_times
from armillary.rehearse.program.stages import Pipeline
from armillary.rehearse.program.watching import Watching, noting_storage
from armillary.rehearse.program.world import CPU
from armillary.step.batches import Step
from armillary.step.phases import Phases
from armillary.step.precision import Precision
from armillary.step.stepper import Stepper

KINDS = {"forward": FORWARD, "backward": BACKWARD, "optimizer": OPTIMISER}
OF_MICRO_BATCHES = ("data", "forward", "backward")
LEAST_FOLDED = 3
"""Equal blocks of a rank, of which the first and the last are run."""


class MarkedPhases(Phases):
    """The phases of a step, which begin passes in a ledger.

    `drives` says that all micro batches run in one phase, whose passes are marked elsewhere.
    """

    def __init__(self, ledger: Ledger, drives: bool) -> None:
        super().__init__(CPU)
        self.ledger, self.drives, self.micro_batch = ledger, drives, -1

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count what runs inside to phase `name`."""
        self.micro_batch += name == "data"
        kind, number = KINDS.get(name, BETWEEN), self.micro_batch
        if name not in OF_MICRO_BATCHES or (self.drives and name == "forward"):
            kind, number = (kind if name == "optimizer" else BETWEEN), OF_STEP
        self.ledger.mark(Mark(kind, 0, number, name))
        yield
        self.ledger.mark(Mark(BETWEEN))


ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD")
"""Optimisers of torch that step one parameter after another, and send nothing."""


class WatchedStepper(Stepper):
    """A stepper that tells a ledger of gradients, before the optimiser uses them.

    Of the parameters of blocks that stand in for another, the states are taken to be those of the
    other's, where the optimiser steps parameters one by one.
    """

    def __init__(
        self, ledger: Ledger, runs: list[Run], shorts: Sequence[Short], **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.ledger, self.runs = ledger, runs
        blocks = [(self.model.get_submodule(s.told_again), s.times) for s in shorts]
        self.times = {p: times for block, times in blocks for p in block.parameters()}

    def update(self, loss: float, factor: float) -> tuple[bool, float | None]:
        """As `Stepper.update`, after noting what gradients hold; of a loss that is a mean, as most
        are, the factor is 1.
        """
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                number = self.ledger.number(plain(parameter.grad))
                if number is not None:
                    self.ledger.call(number, "gradients")
        standing = self._standing()
        kept = [parameter.grad for parameter, _ in standing]
        for parameter, _ in standing:
            parameter.grad = None
        found = super().update(loss, 1.0)
        for parameter, like in standing:
            for state in self.optimizer.state[like].values():
                if isinstance(state, torch.Tensor):
                    times = self.times.get(parameter, 1)
                    self.ledger.take_as(plain(state).nbytes, "optimiser", times)
        stepped = self.times.keys() - {parameter for parameter, _ in standing}
        for parameter in stepped:
            for state in self.optimizer.state[parameter].values():
                if isinstance(state, torch.Tensor) and (n := self.ledger.number(plain(state))):
                    self.ledger.held[n].times = self.times[parameter]
        del kept  # held as long as where all are stepped
        return found

    def _standing(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """The parameters whose step need not be run, each with the one that is stepped alike."""
        kind, settings = type(self.optimizer), self.optimizer.defaults
        is_known = kind.__module__.startswith("torch.optim.") and kind.__name__ in ELEMENTWISE
        if not is_known or settings.get("foreach") or settings.get("fused"):
            return []
        return [
            pair
            for run in self.runs
            for block, like in run.standing
            for pair in zip(block.parameters(), like.parameters(), strict=True)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsed:
    """The ledger of a step, the order in which its passes come in the whole of it, and how many
    blocks stood in.
    """

    ledger: Ledger
    order: Order
    num_folded: int
    num_run: int


def rehearse(program: Program, fake: FakeTensorMode, *, folds: bool) -> Rehearsed:
    """One step of `program`.

    Raises: `SpecError` if the loss looks at values; `CannotFold` if equal blocks do otherwise.
    """
    case, module = program.case, program.module
    ledger = Ledger()
    watching = Watching(ledger, Groups(case.layout.degrees), module, fake)
    pipeline = Pipeline.of(program, ledger) if isinstance(module, DrivesSteps) else None
    num_micro_batches = len(case.sizes)
    num_run = num_micro_batches if not folds else min(num_micro_batches, 3)
    if pipeline is not None:
        num_run = pipeline.begin(num_micro_batches, folds=folds)
    is_whole = pipeline is None or pipeline.runs_backward_whole()
    runs = _hold(program, ledger, watching, folds and is_whole)
    telling = contextlib.nullcontext() if is_whole else telling_weights(runs)
    with fake, noting_storage(ledger, module), telling, warnings.catch_warnings():
        # blocks that tell of their passes hand on views, which nobody writes to
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")
        _take_tensors(program, ledger)
        stepper = WatchedStepper(
            ledger,
            runs,
            program.shorts,
            model=module,
            loss=case.recipe.loss,
            optimizer=case.recipe.optimizer(module.parameters()),
            world=program.world,
            precision=Precision(case.layout, CPU),
            phases=MarkedPhases(ledger, drives=pipeline is not None),
            clip_norm=case.settings.clip_norm,
            seed=case.settings.seed,
        )
        with watching:
            refusing_values(lambda: stepper.run(_step(program, num_run), 0, stop=False))
    ledger.close()
    note_times(ledger, program.shorts)
    order = Order.of(ledger, num_run, num_micro_batches, pipeline)
    return Rehearsed(
        ledger=ledger,
        order=order,
        num_folded=sum(len(run.standing) for run in runs)
        + sum(len(short.left_out) for short in program.shorts),
        num_run=num_run,
    )


def _take_tensors(program: Program, ledger: Ledger) -> None:
    """Note what parameters and buffers hold, those of blocks that were left out among them."""
    module = program.module
    times = {short.told_again: short.times for short in program.shorts}
    for tensor in _tensors(module):
        ledger.take(plain(tensor), "parameters")
    for path, number in times.items():
        for tensor in _tensors(module.get_submodule(path)):
            ledger.held[ledger.take(plain(tensor))].times = number


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _step(program: Program, num_run: int) -> Step:
    """The step as this rank takes part in it: its first micro batches, and its last."""
    sizes = program.case.sizes
    chosen = [*sizes[: num_run - 1], sizes[-1]]

    def batches() -> Iterator[tuple[Any, int]]:
        for size in chosen:
            yield tree_map_only(torch.Tensor, torch.empty_like, program.batches[size]), size

    return Step(
        epoch=0,
        start=0,
        num_samples=program.case.settings.global_batch_size,
        num_micro_batches=num_run,
        micro_batches=batches(),
    )


def _hold(program: Program, ledger: Ledger, watching: Watching, folds: bool) -> list[Run]:
    """Have the blocks of this rank tell of their passes; equal ones stand in for each other where
    there are enough of them.
    """
    found = []
    keeps_inputs = program.case.layout.recompute != "none"
    for part in parts(program.module):
        here = dict(part.named_modules())
        for paths in program.runs:
            blocks = [(path, here[path]) for path in paths if is_here(here.get(path))]
            # units within blocks are reduced when a pipeline's pass has ended, outside of the block
            is_later = isinstance(program.module, DrivesSteps) and any(
                own_units(block) for _, block in blocks
            )
            is_folded = folds and len(blocks) >= LEAST_FOLDED and not is_later
            run = Run(ledger, watching, keeps_inputs=keeps_inputs, folds=is_folded)
            run.hold(blocks)
            found.append(run)
    return found
