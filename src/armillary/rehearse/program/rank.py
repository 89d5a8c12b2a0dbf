"""The record of one rank: its program built as `train` builds it, and one step run."""

from armillary.spec import Layout, Plan
from armillary.spec.record import Record
from armillary.step.recipe import Recipe


def record(
    recipe: Recipe,
    plan: Plan | Layout,
    rank: int,
    *,
    global_batch_size: int = 0,
    fold: bool = True,
) -> Record:
    """What rank `rank` of the plan's layout does in one step of `recipe`.

    `global_batch_size` is the plan's, or the recipe's own, where it is 0. With `fold` equal blocks
    and equal micro batches are run once or twice, and the others taken to do the same.

    Raises: `SpecError` if there is no such rank, the plan is for another model, an axis refuses the
    model, or its forward pass looks at values.
    """
    raise NotImplementedError
