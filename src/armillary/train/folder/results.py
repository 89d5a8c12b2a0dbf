"""What a run's test predictions are held against: the recipe's rivals, and its figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from armillary.step.recipe import Recipe
from armillary.train.folder.run_folder import RunFolder

Predictions = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """The test predictions of a run and its rivals, with the recipe's words for judging them."""

    predictions: Predictions
    rivals: Mapping[str, Predictions]
    metrics: Callable[[Predictions], Mapping[str, float]]
    groups: Callable[[Predictions], NDArray[Any]] | None


def write_results(run: Path, recipe: Recipe) -> Results | None:
    """The results of the run, after its rivals' predictions and its figures are in its folder.

    None if the run has no test predictions or its recipe no metrics.
    """
    folder = RunFolder.open(run)
    predictions = folder.predictions("test")
    metrics = recipe.find("metrics")
    if predictions is None or metrics is None:
        return None
    find_rivals = recipe.find("rivals")
    rivals = find_rivals(recipe.data()) if find_rivals else {}
    for name, rival in rivals.items():
        folder.write_predictions(f"rival-{name}", rival)
    draw = recipe.find("figures")
    if draw is not None:
        from armillary.train.report import save_figures  # what draws is slow to load

        save_figures(run, draw(predictions, rivals))
    return Results(
        predictions=predictions, rivals=rivals, metrics=metrics, groups=recipe.find("groups")
    )
