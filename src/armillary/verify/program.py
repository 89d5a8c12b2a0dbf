"""The program that is verified, as one rank runs it: some optimiser steps, and all they leave.

It is the step that `train` runs (`step/stepper.py`), on the same axes; only what the model and the
batches are is smaller. The serial program is the same on a layout without axes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor

from armillary.feeds import Share
from armillary.spec import Layout
from armillary.step.batches import Batches, Feed, Step
from armillary.step.build import build_on_ranks
from armillary.step.parallel import to_device
from armillary.step.phases import Phases
from armillary.step.precision import Precision
from armillary.step.recipe import Recipe, load_recipe
from armillary.step.stepper import Stepper, StepResult
from armillary.step.world import World, join
from armillary.verify.chance import WithoutDropout, WithoutNoise
from armillary.verify.shapes import keep_shapes
from armillary.verify.shrink import build

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What every layout is to compute: a recipe at a reduced size, its samples, and the steps.

    `samples` are those of all steps; the last step has fewer than `batch_size`, so that shares of
    it are uneven.
    """

    recipe: str
    options: dict[str, str]
    smaller: dict[str, Any]
    samples: list[Any]
    batch_size: int
    seed: int = 0
    clip_norm: float = 0.0


@dataclass(slots=True)
class Trace:
    """What one rank saw: losses and gradient norms by step, gradients of the first step, and the
    parameters and buffers at the end; whole tensors, of the parameters that the rank holds.

    `begun` are both before the first step, noted of the serial program alone. `seeds` are those
    that its random numbers were drawn from, one a micro batch.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: Tensors = field(default_factory=dict)
    parameters: Tensors = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)
    begun: Tensors = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)


class ObservedStepper(Stepper):
    """A stepper that notes the gradients as they are when the optimiser is about to use them, and
    the seed of every micro batch.
    """

    def __init__(self, trace: Trace, **settings: Any) -> None:
        super().__init__(**settings)
        self.trace, self.of_recipe, self.num_to_note = trace, self.loss, 0
        self.loss = self._noting

    def run(self, step: Step, index: int, stop: bool) -> StepResult:
        """As `Stepper.run`; a model that drives its steps calls the loss more often than this."""
        self.num_to_note = step.num_micro_batches
        return super().run(step, index, stop)

    def _noting(self, model: nn.Module, batch: Any) -> Any:
        if self.num_to_note:
            self.num_to_note -= 1
            self.trace.seeds.append(torch.default_generator.initial_seed())
        return self.of_recipe(model, batch)

    def update(self, loss: float, factor: float) -> tuple[bool, float | None]:
        """As `Stepper.update`, after noting the gradients of the first step."""
        if not self.trace.gradients:
            self.trace.gradients = {
                name: _array(p.grad) * factor
                for name, p in self.model.named_parameters()
                if p.grad is not None
            }
        return super().update(loss, factor)


def run(program: Program, layout: Layout) -> Trace:
    """Run `program` on `layout` as one of its ranks, on the CPU in float64; what was seen.

    Raises: `SpecError` if an axis refuses the model.
    """
    if layout.num_ranks > 1:
        keep_shapes()
    with join(layout, "cpu") as world, WithoutDropout():
        trace = Trace()
        stepper, feed = start(program, layout, world, partial(ObservedStepper, trace))
        if layout.num_ranks == 1:
            trace.begun = _parameters(stepper.model) | _buffers(stepper.model)
        for index, step in enumerate(feed.steps()):
            with WithoutNoise():
                result = stepper.run(step, index, stop=False)
            trace.losses.append(result.loss)
            trace.norms.append(result.grad_norm or 0.0)
        trace.parameters, trace.buffers = _parameters(stepper.model), _buffers(stepper.model)
    return trace


def _parameters(model: nn.Module) -> Tensors:
    return {name: _array(parameter) for name, parameter in model.named_parameters()}


def _buffers(model: nn.Module) -> Tensors:
    return {name: _array(buffer) for name, buffer in model.named_buffers()}


def start(
    program: Program, layout: Layout, world: World, stepper: Callable[..., Stepper] = Stepper
) -> tuple[Stepper, Feed]:
    """A stepper of `program` on this rank of `layout` before its first step, and this rank's feed.

    Raises: `SpecError` if an axis refuses the model.
    """
    recipe = load_recipe(program.recipe, program.options)
    precision = Precision(layout, world.device)
    model, _ = build_on_ranks(
        lambda: build(recipe, program.smaller),
        lambda device: example(recipe, program, precision, device),
        world,
        layout,
        dtype=precision.dtype,
        seed=program.seed,
    )
    started = stepper(
        model=model,
        loss=recipe.loss,
        optimizer=recipe.optimizer(model.parameters()),
        world=world,
        precision=precision,
        phases=Phases(world.device),
        clip_norm=program.clip_norm,
        seed=program.seed,
    )
    return started, _feed(program, recipe, world, layout)


def example(
    recipe: Recipe, program: Program, precision: Precision, device: torch.device
) -> tuple[Any, int]:
    """A forward pass on two samples, and their number, for the axes that must see one."""
    batches = Batches(program.samples, program.seed, recipe.find("collate") or _default_collate())
    count = min(2, len(program.samples))
    batch = batches[[(0, i, i) for i in range(count)]]
    batch = to_device(batch, device, precision.dtype)
    return lambda model: recipe.loss(model, batch), count


def _default_collate() -> Any:
    from torch.utils.data import default_collate

    return default_collate


def _feed(program: Program, recipe: Recipe, world: World, layout: Layout) -> Feed:
    return Feed(
        program.samples,
        batch_size=program.batch_size,
        share=Share(
            index=world.batch_index,
            count=world.batch_count,
            micro_batch_size=layout.micro_batch_size,
        ),
        seed=program.seed,
        collate=recipe.find("collate"),
    )


def _array(tensor: Any) -> NDArray[Any]:
    """A tensor, or the whole that a DTensor stands for, as an array of its own."""
    found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return np.array(found.detach().cpu())
