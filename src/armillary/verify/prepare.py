"""A recipe made ready to be verified: its samples taken, its model shrunk, its graph read."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from armillary.models import read
from armillary.spec import Layout, ModelGraph
from armillary.step.precision import Precision
from armillary.step.recipe import Recipe
from armillary.verify.chance import WithoutDropout
from armillary.verify.program import Program, example
from armillary.verify.shrink import TINY, build, shrink

NUM_STEPS = 3
BATCH_SIZE = 16
NUM_LEFT_OUT = 3
"""Samples that the last step has fewer, so that it divides evenly over no ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A program, what it is a reduced form of, and the graph that the axes are asked about."""

    program: Program
    graph: ModelGraph
    shrunk: str


def prepare(
    recipe: Recipe, *, num_steps: int = NUM_STEPS, batch_size: int = BATCH_SIZE
) -> Prepared:
    """`recipe` as a program of `num_steps` steps of `batch_size` samples, the last step uneven.

    Raises: `SpecError` if the recipe's data or model cannot be had.
    """
    train = recipe.data()["train"]
    wanted = max(num_steps * batch_size - NUM_LEFT_OUT, 1)
    program = Program(
        recipe=recipe.word,
        options={name: str(value) for name, value in recipe.options.items() if value is not None},
        smaller={},
        samples=[train[i % len(train)] for i in range(wanted)],
        batch_size=batch_size,
        clip_norm=_clip_norm(recipe),
    )
    with WithoutDropout():
        precision = Precision(Layout(precision="float64"), torch.device("cpu"))
        call, count = example(recipe, program, precision, precision.device)
        smaller = shrink(recipe, lambda model: call(model.double()))
        program = replace(program, smaller=smaller)
        model = build(recipe, smaller).double()
        graph = read(model, call, count)
    return Prepared(program=program, graph=graph, shrunk=_describe(recipe, smaller))


def _clip_norm(recipe: Recipe) -> float:
    """The recipe's own clipping, or one that always clips, so that the norm is proven too."""
    return float(recipe.defaults.get("clip_norm", 0.0)) or 0.1


def _describe(recipe: Recipe, smaller: dict[str, Any]) -> str:
    if recipe.find(TINY) is not None:
        return "the recipe's tiny()"
    if not smaller:
        return "at its full size"
    options = recipe.options_of(recipe.module.model)
    return ", ".join(f"{name} {options[name]} -> {value}" for name, value in smaller.items())
