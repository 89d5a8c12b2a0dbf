"""Whether the axes of a layout can serve a recipe's model, asked before any rank starts."""

import functools

import torch

from armillary.axes import admit
from armillary.feeds import Share
from armillary.models import Call
from armillary.spec import SpecError
from armillary.step.batches import Feed
from armillary.step.build import read_before_ranks
from armillary.step.parallel import to_device
from armillary.step.precision import Precision
from armillary.step.recipe import Recipe
from armillary.step.world import count_micro_batches, with_micro_batches
from armillary.train.request import TrainRequest


def admit_before_ranks(request: TrainRequest, *, as_named: bool = True) -> None:
    """Have every axis of the request's layout refuse the model here, while ranks are made ready.

    The model is built as the ranks will build it; the recipe's data is read only for axes that must
    see the model called. Unless it must run `as_named`, a schedule that does not take the micro
    batches of a step is not refused: the like that does is run.

    Raises: `SpecError` with the reason of the axis.
    """
    recipe = request.load_recipe()
    dtype = Precision(request.layout, torch.device("cpu")).dtype
    example = functools.partial(_example, recipe, dtype)
    try:
        graph = read_before_ranks(recipe.model, example, request.layout, dtype=dtype)
    except SpecError:
        raise
    except Exception:  # a mistake of the recipe's own code, which the ranks make and show too
        return
    layout, batch_size = request.layout, request.settings.global_batch_size
    number = count_micro_batches(with_micro_batches(layout, batch_size), batch_size)
    admit(layout, graph, num_micro_batches=number if as_named else 0)


def _example(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> tuple[Call, int]:
    """A forward pass of the loss on the first samples, and how many they are."""
    feed = Feed(recipe.data()["train"], batch_size=1, share=Share(), collate=recipe.find("collate"))
    batch, num_samples = feed.example()
    batch = to_device(batch, device, dtype)
    return lambda model: recipe.loss(model, batch), num_samples
