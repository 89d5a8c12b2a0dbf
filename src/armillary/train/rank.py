"""The whole life of one rank: it joins the others, agrees with them on the run, and trains."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from armillary.spec import closed_to_others
from armillary.step.recipe import Recipe
from armillary.step.seat import Seat
from armillary.step.world import World, join, with_micro_batches
from armillary.train.folder.lock import given_back, only_writer
from armillary.train.folder.run_folder import RunFolder
from armillary.train.heap import keep_freed_memory
from armillary.train.loop import Trainer
from armillary.train.outcome import Outcome
from armillary.train.outfit import fit_out
from armillary.train.request import TrainRequest
from armillary.train.survive.memory import advice, is_out_of_memory
from armillary.train.survive.stop import StopWish, watch_signals
from armillary.train.survive.watch import Watch


def train_rank(
    request: TrainRequest,
    seat: Seat | None = None,
    *,
    agent: int | None = None,
    note_run: Callable[[Path], None] | None = None,
) -> Outcome:
    """Train as one rank of the request's layout; the outcome, equal on every rank.

    `seat` is where the rank joins the others, without one as torch's own variables say. `agent`
    is the process that started the rank, without which it is not to go on. `note_run` is told of
    the run's folder on rank 0.

    Raises: `SpecError` on what the data, model or disk makes impossible.
    """
    settings = request.settings
    watch = Watch(
        rank=seat.rank or 0 if seat else 0,
        hang_steps=settings.hang_steps,
        least_s=settings.hang_least_s,
        ends=request.layout.num_ranks > 1,
    )
    with (
        closed_to_others(),
        watch_signals() as wish,
        watch.watching(agent),
        join(request.layout, request.device, seat) as world,
    ):
        if world.device.type == "cpu":
            keep_freed_memory()
        if not world.is_first:
            warnings.simplefilter("ignore")  # what torch warns of is said once, not by every rank
        recipe = request.load_recipe()
        request = _agree_on_run(request, recipe, world)
        assert request.run_path is not None
        if world.is_first and note_run is not None:
            note_run(request.run_path)
        watch.rank, watch.run = world.rank, request.run_path
        with contextlib.ExitStack() as stack:
            if world.is_first:
                stack.enter_context(given_back(request.run_path))
                stack.enter_context(only_writer(request.run_path))
            return _train(request, recipe, world, wish, watch)


def _train(
    request: TrainRequest, recipe: Recipe, world: World, wish: StopWish, watch: Watch
) -> Outcome:
    layout = with_micro_batches(request.layout, request.settings.global_batch_size)
    request = replace(request, layout=layout)
    outfit = fit_out(request, recipe, world)
    watch.phases = outfit.phases
    try:
        trainer = Trainer(request, outfit, wish, watch)
        try:
            return trainer.run()
        finally:
            trainer.close()
    except Exception as error:
        if is_out_of_memory(error):
            raise advice(error, request, outfit) from error
        raise


def _agree_on_run(request: TrainRequest, recipe: Recipe, world: World) -> TrainRequest:
    """The request as rank 0 has it: with the run's folder, a new one if none is given, and whether
    it goes on with what is there.
    """
    agreed = [(request.run_path, request.is_resumed, request.restart_note)]
    if request.run_path is None and world.is_first:
        agreed = [(RunFolder.create(request.runs, recipe.name).path, False, "")]
    if world.mesh is not None:
        dist.broadcast_object_list(agreed)
    path, is_resumed, note = agreed[0]
    return replace(request, run_path=path, is_resumed=is_resumed, restart_note=note)
