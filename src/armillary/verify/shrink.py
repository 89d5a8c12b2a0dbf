"""A recipe's model at a reduced size that keeps its structure: what verify builds and compares."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from armillary.models import read
from armillary.spec import SpecError
from armillary.step.recipe import Recipe

MOST_PARAMETERS = 60_000
"""A model with fewer is not shrunk further: a step of it then takes milliseconds."""
LEAST_BLOCKS = 4
"""Blocks that are kept of a chain, so that it can be cut into as many stages."""
TINY = "tiny"


def build(recipe: Recipe, smaller: dict[str, Any]) -> nn.Module:
    """The model of `recipe` with the options `smaller`, or what its `tiny()` gives with those of
    the recipe's options that it takes.
    """
    tiny = recipe.find(TINY)
    if tiny is not None:
        model = tiny(**recipe.options_of(tiny))
    else:
        model = recipe.module.model(**_model_options(recipe) | smaller)
    if not isinstance(model, nn.Module):
        raise SpecError(
            f"recipe.{TINY if tiny else 'model'}",
            f"returned {type(model).__name__}",
            "it returns a torch.nn.Module",
            "return the module",
        )
    for part in model.modules():
        if isinstance(part, (nn.RNNBase, nn.MultiheadAttention)):
            part.dropout = 0.0
    return model


def shrink(recipe: Recipe, call: Callable[[nn.Module], Any]) -> dict[str, Any]:
    """Smaller values of the whole-number options of the recipe's `model`, by name; {} for none.

    Each option is halved as long as `call(model)`, a forward pass of the loss, works, the model
    keeps its kinds of modules and at least four of its blocks, and more than sixty thousand
    parameters are left. A recipe with a `tiny()` is taken at its word.
    """
    if recipe.find(TINY) is not None:
        return {}
    options = _model_options(recipe)
    smaller: dict[str, Any] = {}
    whole = build(recipe, {})
    kinds, least = _kinds(whole), min(LEAST_BLOCKS, len(read(whole).blocks))
    for _ in range(16):
        halved = False
        for name, value in options.items():
            now = smaller.get(name, value)
            if isinstance(now, bool) or not isinstance(now, int) or now < 2:
                continue
            if _size(build(recipe, smaller)) <= MOST_PARAMETERS:
                return smaller
            trial = smaller | {name: now // 2}
            if _works(recipe, trial, call, kinds, least):
                smaller, halved = trial, True
        if not halved:
            break
    return smaller


def _works(
    recipe: Recipe,
    trial: dict[str, Any],
    call: Callable[[nn.Module], Any],
    kinds: set[type],
    least: int,
) -> bool:
    """Whether the smaller model runs and is still the same structure."""
    try:
        model = build(recipe, trial)
        with torch.no_grad():
            call(model)
    except Exception:  # whatever a size that does not fit makes the recipe's own code raise
        return False
    return _kinds(model) == kinds and len(read(model).blocks) >= least


def _model_options(recipe: Recipe) -> dict[str, Any]:
    return recipe.options_of(recipe.module.model)


def _kinds(model: nn.Module) -> set[type]:
    return {type(part) for part in model.modules()}


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
