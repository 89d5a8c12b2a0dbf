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
from armillary.train.request import TrainRequest


def admit_before_ranks(request: TrainRequest) -> None:
    """Have every axis of the request's layout refuse the model here, while ranks are made ready.

    The model is built as the ranks will build it; the recipe's data is read only for axes that must
    see the model called.

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
    admit(request.layout, graph)


def _example(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> tuple[Call, int]:
    """A forward pass of the loss on the first samples, and how many they are."""
    feed = Feed(recipe.data()["train"], batch_size=1, share=Share(), collate=recipe.find("collate"))
    batch, num_samples = feed.example()
    batch = to_device(batch, device, dtype)
    return lambda model: recipe.loss(model, batch), num_samples
