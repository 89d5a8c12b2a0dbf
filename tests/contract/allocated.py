"""What a real step takes on the CPU, by the count of torch's own allocator."""

from typing import Any

NUM_STEPS = 2  # until states are there, and buckets have been sorted


def allocated(recipe: str, options: dict[str, str], words: str, batch_size: int) -> int:
    """Bytes at the fullest moment of a step on this rank: parameters, optimiser states, and what
    the allocator counts on top of them.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    from armillary.rehearse.program.build import Case
    from armillary.spec import Layout
    from armillary.step.recipe import load_recipe
    from armillary.step.world import join

    layout = Layout.parse(words)
    with join(layout, "cpu") as world:
        case = Case.of(load_recipe(recipe, options), layout, batch_size, world.rank)
        stepper = _stepper(case, world)
        for index in range(NUM_STEPS):
            stepper.run(_step(case), index, stop=False)
        state = [v for s in stepper.optimizer.state.values() for v in s.values()]
        tensors = [t for t in state if isinstance(t, torch.Tensor)]
        tensors += [*stepper.model.parameters(), *stepper.model.buffers()]
        held = sum(getattr(t, "_local_tensor", t).nbytes for t in tensors)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            stepper.run(_step(case), NUM_STEPS, stop=False)
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return held + most


def _step(case: Any) -> Any:
    from armillary.step.batches import Step

    return Step(
        epoch=0,
        start=0,
        num_samples=case.settings.global_batch_size,
        num_micro_batches=len(case.sizes),
        micro_batches=((case.batch(size), size) for size in case.sizes),
    )


def _stepper(case: Any, world: Any) -> Any:
    from armillary.step.build import build_on_ranks
    from armillary.step.parallel import to_device
    from armillary.step.phases import Phases
    from armillary.step.precision import Precision
    from armillary.step.stepper import Stepper

    recipe, precision = case.recipe, Precision(case.layout, world.device)
    batch = case.batch(2)
    model, _ = build_on_ranks(
        recipe.model,
        lambda device: (lambda model: recipe.loss(model, to_device(batch, device)), 2),
        world,
        case.layout,
        dtype=precision.dtype,
        seed=0,
    )
    return Stepper(
        model=model,
        loss=recipe.loss,
        optimizer=recipe.optimizer(model.parameters()),
        world=world,
        precision=precision,
        phases=Phases(world.device),
        clip_norm=case.settings.clip_norm,
        seed=0,
    )
