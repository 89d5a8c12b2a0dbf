"""One optimiser step on the ranks, the same for every verb: recipe, world, batches, step."""
