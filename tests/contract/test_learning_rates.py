"""The recipes' learning rates, for trainings of any length."""

import pytest
import torch

from armillary.step.recipe import load_recipe


@pytest.mark.parametrize("name", ["weather", "cnn", "gnn", "fusion"])
def test_a_scheduler_is_made_and_stepped_for_any_number_of_steps(name: str) -> None:
    recipe = load_recipe(name)
    for num_steps in range(1, 41):
        optimizer = recipe.optimizer([torch.nn.Parameter(torch.zeros(1))])
        make = recipe.find("scheduler")
        assert make is not None
        scheduler = make(optimizer, num_steps)
        for _ in range(num_steps - 1):
            optimizer.step()
            scheduler.step()
        assert scheduler.get_last_lr()[0] < 0.01
