"""The training loop: steps, evaluations and checkpoints of one rank, until it is time to stop."""

import contextlib
import math
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from armillary.feeds import Share
from armillary.models import Call
from armillary.spec import SpecError, TrainSettings, closed_to_others
from armillary.step.batches import Feed, Step
from armillary.step.build import build_on_ranks
from armillary.step.parallel import to_device
from armillary.step.phases import Phases
from armillary.step.precision import Precision
from armillary.step.recipe import Recipe
from armillary.step.seat import Seat
from armillary.step.stepper import Stepper, StepResult
from armillary.step.world import World, join, with_micro_batches
from armillary.train.average import Average
from armillary.train.checkpoint import (
    Checkpoints,
    best_step,
    checkpoint_path,
    find_fault,
    newest_whole,
    prepare_to_save,
    saved_steps,
)
from armillary.train.evaluate import Evaluation, Evaluator
from armillary.train.heap import keep_freed_memory
from armillary.train.journal import Journal
from armillary.train.request import TrainRequest
from armillary.train.run_folder import RunFolder
from armillary.train.state import Counters, TrainState, restore_model
from armillary.train.stop import StopWish, watch_signals

FINISHED, NOT_FINITE, INTERRUPTED = 0, 3, 75


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended: its exit code (0 done, 3 loss not finite, 75 interrupted), and its folder.

    `loss` is that of the last step; `message` says what happened, for a person.
    """

    exit_code: int
    run_path: Path
    num_steps: int
    loss: float
    message: str
    is_writer: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The outcome for a program; a loss that is no number is None."""
        return {
            "exit_code": self.exit_code,
            "run": str(self.run_path),
            "num_steps": self.num_steps,
            "message": self.message,
            "loss": self.loss if math.isfinite(self.loss) else None,
        }


def train_rank(request: TrainRequest, seat: Seat | None = None) -> Outcome:
    """Train as one rank of the request's layout; the outcome, equal on every rank.

    `seat` is where the rank joins the others, without one as torch's own variables say.

    Raises: `SpecError` on what the data, model or disk makes impossible.
    """
    with (
        closed_to_others(),
        watch_signals() as wish,
        join(request.layout, request.device, seat) as world,
    ):
        if world.device.type == "cpu":
            keep_freed_memory()
        if not world.is_first:
            warnings.simplefilter("ignore")  # what torch warns of is said once, not by every rank
        recipe = request.load_recipe()
        request = replace(request, run_path=_agree_on_folder(request, recipe, world))
        trainer = Trainer(request, recipe, world, wish)
        try:
            return trainer.run()
        finally:
            trainer.journal.close()


def _agree_on_folder(request: TrainRequest, recipe: Recipe, world: World) -> Path:
    """The run's folder: the given one, or a new one that rank 0 makes and names to all."""
    path = [request.run_path]
    if request.run_path is None:
        if world.is_first:
            path = [RunFolder.create(request.runs, recipe.name).path]
        if world.mesh is not None:
            dist.broadcast_object_list(path)
    assert path[0] is not None
    return path[0]


class Trainer:
    """One rank's run: what it trains, feeds, evaluates and saves."""

    def __init__(self, request: TrainRequest, recipe: Recipe, world: World, wish: StopWish) -> None:
        layout = with_micro_batches(request.layout, request.settings.global_batch_size)
        request = replace(request, layout=layout)
        assert request.run_path is not None
        self.request, self.recipe, self.world, self.wish = request, recipe, world, wish
        self.settings: TrainSettings = request.settings
        self.splits = recipe.data()
        self.precision = Precision(request.layout, world.device)
        self.phases = Phases(world.device)
        self.feed = Feed(
            self.splits["train"],
            batch_size=self.settings.global_batch_size,
            share=Share(
                index=world.batch_index,
                count=world.batch_count,
                micro_batch_size=request.layout.micro_batch_size,
            ),
            seed=self.settings.seed,
            shuffle=self.settings.shuffle,
            collate=recipe.find("collate"),
            num_workers=self.settings.num_workers,
            pin_memory=world.device.type != "cpu",
        )
        self.model, self.graph = build_on_ranks(
            self._build_model,
            self._example,
            world,
            request.layout,
            dtype=self.precision.dtype,
            seed=self.settings.seed,
        )
        self.num_steps = self._count_steps()
        self.state = self._build_state()
        self.evaluator = self._evaluator("validation")
        self.journal = Journal(request, recipe, world, self.graph, self.splits, self.num_steps)
        self.checkpoints = Checkpoints(
            request.run_path / "checkpoints", world, self.settings.keep_checkpoints
        )
        self.stepper = Stepper(
            model=self.model,
            loss=recipe.loss,
            optimizer=self.state.optimizer,
            world=world,
            precision=self.precision,
            phases=self.phases,
            clip_norm=self.settings.clip_norm,
            seed=self.settings.seed,
        )

    def _build_model(self) -> nn.Module:
        model = self.recipe.model()
        if not isinstance(model, nn.Module):
            raise SpecError(
                "recipe.model",
                f"returned {type(model).__name__}",
                "model() returns a torch.nn.Module",
                "return the module",
            )
        return model

    def _example(self, device: torch.device) -> tuple[Call, int]:
        """A forward pass of the loss on the first samples, and how many they are."""
        batch, num_samples = self.feed.example()
        batch = to_device(batch, device, self.precision.dtype)
        return lambda model: self.recipe.loss(model, batch), num_samples

    def _build_state(self) -> TrainState:
        optimizer = self.recipe.optimizer(self.model.parameters())
        scheduler = self.recipe.find("scheduler")
        return TrainState(
            model=self.model,
            optimizer=optimizer,
            scheduler=scheduler(optimizer, self.num_steps) if scheduler else None,
            scaler=self.precision.scaler,
            feed=self.feed,
            counters=Counters(),
            average=Average(self.model, decay) if (decay := self.settings.average_decay) else None,
        )

    def _evaluator(self, split: str) -> Evaluator:
        return Evaluator(
            self.recipe,
            self.splits[split],
            self.world,
            self.precision,
            self.settings.global_batch_size,
            self.request.layout.micro_batch_size,
        )

    def _count_steps(self) -> int:
        num_steps = self.settings.epochs * self.feed.num_steps
        return min(num_steps, self.settings.max_steps or num_steps)

    @property
    def counters(self) -> Counters:
        """How far the run is."""
        return self.state.counters

    def run(self) -> Outcome:
        """Train until done, told to stop, or the loss is not finite; then evaluate the best."""
        if self.request.is_resumed:
            self._resume()
        self.journal.begin(self.counters.step)
        outcome = self._train()
        if outcome.exit_code == FINISHED and "test" in self.splits:
            self._test()
        self.journal.event(outcome.num_steps, "ended", outcome.message)
        return outcome

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is whole, as rank 0 finds it."""
        found: list[Any] = [None]
        if self.world.is_first:
            try:
                found = [newest_whole(self.checkpoints.folder)]
            except SpecError as error:
                found = [error]
        if self.world.mesh is not None:
            dist.broadcast_object_list(found)
        if isinstance(found[0], SpecError):
            raise found[0]
        step, passed_over = found[0]
        self.state.restore(checkpoint_path(self.checkpoints.folder, step), self.world)
        for message in passed_over:
            self.journal.event(step, "fallback", message)
        self.journal.event(step, "resumed", f"resumed after step {step} on {self.request.layout}")

    def _train(self) -> Outcome:
        loss, saved = math.nan, self.counters.step if self.request.is_resumed else -1
        if 0 < self.counters.step != self.counters.evaluated and self._evaluates():
            saved = self._evaluate()  # the run was told to stop when it was due
        while not self._is_over():
            for step in self.feed.steps():
                started_s = time.perf_counter()
                result = self.stepper.run(step, self.counters.step, bool(self.wish))
                loss = result.loss
                if not result.stepped:
                    return self._stop_not_finite(step, result, saved)
                self._count(step, result, time.perf_counter() - started_s)
                prepare_to_save() if self.counters.step == 1 else None
                self.checkpoints.poll()
                keeps = result.stop or self._evaluates() or self._saves()
                if keeps and not self._is_sound():
                    return self._stop_unsound(saved)
                if result.stop:
                    self._save()
                    return self._end(INTERRUPTED, loss, "interrupted; saved, go on with --resume")
                if self._evaluates():
                    saved = self._evaluate()
                elif self._saves():
                    saved = self._save()
                if self._is_over():
                    break
        message = "finished" if self.counters.step >= self.num_steps else "stopped early"
        return self._end(FINISHED, loss, message)

    def _is_over(self) -> bool:
        """Whether all steps are done, or too many evaluations brought nothing better."""
        patience = self.settings.patience
        return self.counters.step >= self.num_steps or 0 < patience <= self.counters.since_best

    def _count(self, step: Step, result: StepResult, step_s: float) -> None:
        """Count a finished step, move the schedule on, and write the journal's line."""
        if self.state.average:
            self.state.average.update()
        learning_rate = self.state.optimizer.param_groups[0]["lr"]
        if self.state.scheduler:
            self.state.scheduler.step()
        self.counters.step += 1
        phases_s = self.phases.take()
        if self.counters.step % self.settings.log_every_steps == 0:
            self.journal.step(
                self.counters.step, step, result, step_s, phases_s, float(learning_rate)
            )

    def _is_due(self, every_steps: int) -> bool:
        """Whether a cadence falls on this step; 0 means at the end of an epoch."""
        if every_steps:
            return self.counters.step % every_steps == 0
        return self.feed.position >= len(self.feed.dataset)

    def _evaluates(self) -> bool:
        is_last = self.counters.step >= self.num_steps
        return is_last or self._is_due(self.settings.evaluate_every_steps)

    def _saves(self) -> bool:
        return bool(self.settings.checkpoint_every_steps) and self._is_due(
            self.settings.checkpoint_every_steps
        )

    def _evaluate(self) -> int:
        """Evaluate on validation, remember the best, and save; the step that was saved."""
        average = self.state.average
        with average.in_place() if average else contextlib.nullcontext():
            evaluation = self.evaluator.run(self.model)
        self.counters.evaluated = self.counters.step
        value = self._monitored(evaluation)
        direction = 1 if self.recipe.monitor.startswith("min:") else -1
        best = self.counters.best
        is_best = math.isfinite(value) and (best is None or direction * (value - best) < 0)
        self.counters.best = value if is_best else best
        self.counters.since_best = 0 if is_best else self.counters.since_best + 1
        self.journal.evaluation(self.counters.step, self.feed.epoch, "validation", evaluation)
        if is_best:
            self.journal.event(self.counters.step, "best", f"{self.recipe.monitor} {value:.6g}")
        return self._save({"monitor": self.recipe.monitor, "value": value} if is_best else None)

    def _monitored(self, evaluation: Evaluation) -> float:
        name = self.recipe.monitor.partition(":")[2]
        return evaluation.loss if name == "loss" else evaluation.metrics[name]

    def _save(self, best: dict[str, Any] | None = None) -> int:
        save_s = self.checkpoints.save(self.counters.step, self.state.capture(), best)
        self.journal.checkpoint(self.counters.step, save_s)
        return self.counters.step

    def _stop_not_finite(self, step: Step, result: StepResult, saved: int) -> Outcome:
        """Save the state before the step that went wrong, if it is sound, and say which batch."""
        self.feed.position, self.feed.epoch = step.start, step.epoch
        message = (
            f"loss {result.loss}, gradient norm {result.grad_norm} at step "
            f"{self.counters.step + 1}: epoch {step.epoch}, positions {step.start} to "
            f"{step.start + step.num_samples - 1}, samples "
            f"{self.journal.name_samples(self.feed, step)}"
        )
        if saved != self.counters.step and self._is_sound():
            self._save()
        self.journal.event(self.counters.step, "nan", message)
        return self._end(NOT_FINITE, result.loss, message)

    def _stop_unsound(self, saved: int) -> Outcome:
        """Stop before a state is saved whose parameters are not finite, though the losses were."""
        message = (
            f"parameters are not finite after step {self.counters.step}: a gradient after step "
            f"{saved} was not, though its loss was; clip_norm names the very step"
        )
        self.journal.event(self.counters.step, "nan", message)
        return self._end(NOT_FINITE, math.nan, message)

    def _is_sound(self) -> bool:
        """Whether the parameters are finite on every rank."""
        sound = torch.tensor([float(all(bool(p.isfinite().all()) for p in _local(self.model)))])
        return float(self.world.sum(sound)) == self.world.batch_count

    def _end(self, exit_code: int, loss: float, message: str) -> Outcome:
        self.checkpoints.finish()
        if self.world.mesh is not None:
            dist.barrier()
        assert self.request.run_path is not None
        return Outcome(
            exit_code=exit_code,
            run_path=self.request.run_path,
            num_steps=self.counters.step,
            loss=loss,
            message=message,
            is_writer=self.world.is_first,
        )

    def _test(self) -> None:
        """Evaluate the best checkpoint on the test split and keep its predictions."""
        folder = self.checkpoints.folder
        best = best_step(folder)
        step = best if best is not None else max(saved_steps(folder))
        if step != self.counters.step or self.state.average:
            path = checkpoint_path(folder, step)
            fault = find_fault(path)
            if fault is not None:
                raise SpecError(
                    "checkpoints",
                    f"{path.name}: {fault}",
                    "the test uses the best checkpoint",
                    "resume the run",
                )
            restore_model(self.model, path, serial=self.world.mesh is None)
        evaluation = self._evaluator("test").run(self.model)
        self.journal.evaluation(step, self.feed.epoch, "test", evaluation)


def _local(model: nn.Module) -> list[torch.Tensor]:
    """The parts of the parameters that this rank holds."""
    return [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
