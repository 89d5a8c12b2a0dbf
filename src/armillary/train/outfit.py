"""What a rank trains with: data, model, optimiser, schedule and stepper, made from a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from armillary.feeds import Share
from armillary.models import Call
from armillary.spec import ModelGraph, SpecError, TrainSettings
from armillary.step.batches import Feed
from armillary.step.build import build_on_ranks
from armillary.step.parallel import to_device
from armillary.step.phases import Phases
from armillary.step.precision import Precision
from armillary.step.recipe import Recipe
from armillary.step.stepper import Stepper
from armillary.step.world import World
from armillary.train.average import Average
from armillary.train.checkpoints.state import Counters, TrainState
from armillary.train.evaluate import Evaluator
from armillary.train.request import TrainRequest
from armillary.train.survive.guard import Guard


@dataclass(frozen=True, kw_only=True, slots=True)
class Outfit:
    """What one rank trains with; `num_steps` is the length of the whole run."""

    recipe: Recipe
    world: World
    settings: TrainSettings
    micro_batch_size: int
    splits: Mapping[str, Any]
    precision: Precision
    phases: Phases
    feed: Feed
    graph: ModelGraph
    num_steps: int
    state: TrainState
    stepper: Stepper

    def evaluator(self, split: str) -> Evaluator:
        """An evaluator of a split."""
        return Evaluator(
            self.recipe,
            self.splits[split],
            self.world,
            self.precision,
            self.settings.global_batch_size,
            self.micro_batch_size,
        )


def fit_out(request: TrainRequest, recipe: Recipe, world: World) -> Outfit:
    """The outfit of this rank, whose layout names its micro batches.

    Raises: `SpecError` if an axis refuses the model, or the recipe makes none.
    """
    settings, layout = request.settings, request.layout
    splits = recipe.data()
    precision, phases = Precision(layout, world.device), Phases(world.device)
    feed = _feed(request, recipe, world, splits["train"])

    def example(device: torch.device) -> tuple[Call, int]:
        batch, num_samples = feed.example()
        batch = to_device(batch, device, precision.dtype)
        return lambda module: recipe.loss(module, batch), num_samples

    model, graph = build_on_ranks(
        lambda: _module(recipe), example, world, layout, dtype=precision.dtype, seed=settings.seed
    )
    if request.weights is not None and not request.is_resumed:
        from armillary.train.checkpoints.weights import read_into

        read_into(model, request.weights)
    most = settings.epochs * feed.num_steps
    num_steps = min(most, settings.max_steps or most)
    state = _state(recipe, model, feed, precision, num_steps, settings)
    stepper = Stepper(
        model=model,
        loss=recipe.loss,
        optimizer=state.optimizer,
        world=world,
        precision=precision,
        phases=phases,
        clip_norm=settings.clip_norm,
        seed=settings.seed,
    )
    stepper.refuses = state.guard.is_spike
    return Outfit(
        recipe=recipe,
        world=world,
        settings=settings,
        micro_batch_size=layout.micro_batch_size,
        splits=splits,
        precision=precision,
        phases=phases,
        feed=feed,
        graph=graph,
        num_steps=num_steps,
        state=state,
        stepper=stepper,
    )


def _feed(request: TrainRequest, recipe: Recipe, world: World, dataset: Any) -> Feed:
    settings = request.settings
    return Feed(
        dataset,
        batch_size=settings.global_batch_size,
        share=Share(
            index=world.batch_index,
            count=world.batch_count,
            micro_batch_size=request.layout.micro_batch_size,
        ),
        seed=settings.seed,
        shuffle=settings.shuffle,
        collate=recipe.find("collate"),
        num_workers=settings.num_workers,
        pin_memory=world.device.type != "cpu",
    )


def _module(recipe: Recipe) -> nn.Module:
    model = recipe.model()
    if not isinstance(model, nn.Module):
        raise SpecError(
            "recipe.model",
            f"returned {type(model).__name__}",
            "model() returns a torch.nn.Module",
            "return the module",
        )
    return model


def _state(
    recipe: Recipe,
    model: nn.Module,
    feed: Feed,
    precision: Precision,
    num_steps: int,
    settings: TrainSettings,
) -> TrainState:
    optimizer = recipe.optimizer(model.parameters())
    scheduler = recipe.find("scheduler")
    return TrainState(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler(optimizer, num_steps) if scheduler else None,
        scaler=precision.scaler,
        feed=feed,
        counters=Counters(),
        average=Average(model, decay) if (decay := settings.average_decay) else None,
        guard=Guard(settings.spike_deviations),
    )
