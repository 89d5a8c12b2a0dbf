"""The serial run against a loop written by hand: what layouts are compared with is itself right."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from armillary.feeds import SampleOrder
from armillary.spec import TrainSettings
from armillary.step.recipe import load_recipe
from armillary.train.request import new_request
from tests.parity.runs import CASES, Bench, distance, largest_relative


def _train_by_hand(case: str) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms and parameters of a plain loop over whole batches, in float64."""
    recipe = load_recipe(str(CASES / f"{case}.py"))
    settings: TrainSettings = new_request(str(recipe.source)).settings
    torch.manual_seed(settings.seed)
    model = recipe.model().double()
    dataset = recipe.data()["train"]
    starts = range(0, len(dataset), settings.global_batch_size)
    optimizer = recipe.optimizer(model.parameters())
    scheduler = recipe.find("scheduler")
    schedule = scheduler and scheduler(optimizer, len(starts) * settings.epochs)
    collate = recipe.find("collate") or default_collate
    losses, norms = [], []
    for epoch in range(settings.epochs):
        order = SampleOrder(num_samples=len(dataset), seed=settings.seed)
        indices = order.at(epoch, np.arange(len(dataset))).tolist()
        for start in starts:
            chosen = indices[start : start + settings.global_batch_size]
            found = recipe.loss(model, _as_float64(collate([dataset[i] for i in chosen])))
            mean = found[0] / found[1] if isinstance(found, tuple) else found
            mean.backward()
            norm = torch.nn.utils.clip_grad_norm_(
                model.parameters(), settings.clip_norm or float("inf")
            )
            optimizer.step()
            optimizer.zero_grad()
            if schedule:
                schedule.step()
            losses.append(mean.item())
            norms.append(norm.item())
    return losses, norms, dict(model.state_dict())


def _as_float64(batch: Any) -> Any:
    return torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, batch
    )


@pytest.mark.parametrize("case", ["mlp", "sequences", "blocks", "twice"])
@pytest.mark.parametrize("layout", ["", "data=2,micro_batch_size=3"])
def test_a_run_gives_the_numbers_of_a_loop_written_by_hand(
    bench: Bench, case: str, layout: str
) -> None:
    losses, norms, parameters = _train_by_hand(case)
    ours = bench.train(case, f"{layout},precision=float64")
    assert largest_relative(ours.losses, losses) <= 1e-10
    assert distance(ours.parameters(), parameters) <= 1e-10
    if ours.folder.manifest.settings.clip_norm:
        assert largest_relative(ours.column("grad_norm"), norms) <= 1e-10
