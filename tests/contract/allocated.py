"""What a real step takes on the CPU, by the count of torch's own allocator."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

NUM_STEPS = 2  # until states are there, and buckets have been sorted
NUM_MEASURED = 3
LET_GO_S = 0.002
"""After a collective has ended, for gloo's own thread to give up what it sent. torch's profiler
counts memory by thread (2.13, seen): what that thread is the last to give up is counted as held for
ever, at random, though it is free."""


def allocated(recipe: str, options: dict[str, str], words: str, batch_size: int) -> int:
    """Bytes at the fullest moment of a step on this rank: parameters, optimiser states and DDP's
    buckets, which a step finds, and what the allocator counts on top of them. The least of some
    steps: what is counted as held though it is free makes it more.
    """
    from armillary.rehearse.program.build import Case
    from armillary.spec import Layout
    from armillary.step.recipe import load_recipe
    from armillary.step.world import join

    layout = Layout.parse(words)
    with join(layout, "cpu") as world, _letting_go():
        case = Case.of(load_recipe(recipe, options), layout, batch_size, world.rank)
        stepper = _stepper(case, world)
        for index in range(NUM_STEPS):
            stepper.run(_step(case), index, stop=False)
        held = _found(stepper)
        return held + min(_most(stepper, case, NUM_STEPS + i) for i in range(NUM_MEASURED))


def _most(stepper: Any, case: Any, index: int) -> int:
    """The most bytes that a step takes above those that it finds."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        stepper.run(_step(case), index, stop=False)
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def _found(stepper: Any) -> int:
    """Bytes that a step finds: parameters, buffers, optimiser states, buckets of gradients."""
    import torch

    state = [v for s in stepper.optimizer.state.values() for v in s.values()]
    tensors = [t for t in state if isinstance(t, torch.Tensor)]
    tensors += [*stepper.model.parameters(), *stepper.model.buffers()]
    return sum(getattr(t, "_local_tensor", t).nbytes for t in tensors) + _buckets(stepper.model)


def _buckets(model: Any) -> int:
    """Bytes of DDP's buckets, which are made with it, as it logs them; 0 without DDP."""
    from torch.distributed._composable.replicate import replicate

    state: Any = replicate.state(model)
    if getattr(state, "_ddp", None) is None:
        return 0
    sizes = state._ddp._get_ddp_logging_data()["bucket_sizes"]
    return sum(int(size) for size in str(sizes).split(","))


@contextlib.contextmanager
def _letting_go() -> Iterator[None]:
    """A context in which whoever waits for a collective waits a little longer."""
    import torch.distributed as dist

    kind: Any = dist.Work
    wait = kind.wait

    def patient(work: Any, *args: Any, **kwargs: Any) -> Any:
        found = wait(work, *args, **kwargs)
        time.sleep(LET_GO_S)
        return found

    kind.wait = patient
    try:
        yield
    finally:
        kind.wait = wait


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
