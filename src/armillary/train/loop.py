"""The training loop: steps, evaluations and checkpoints of one rank, until it is time to stop."""

import contextlib
import math
import time
from typing import Any

import torch.distributed as dist

from armillary.spec import SpecError, TrainSettings
from armillary.step.batches import Feed, Step
from armillary.step.stepper import StepResult
from armillary.train.checkpoints.cadence import Cadence
from armillary.train.checkpoints.checkpoint import COMMIT_TIMEOUT_S, Checkpoints, prepare_to_save
from armillary.train.checkpoints.mirror import Mirror
from armillary.train.checkpoints.saved import (
    best_step,
    checkpoint_path,
    find_fault,
    newest_whole,
    saved_steps,
)
from armillary.train.checkpoints.state import Counters, TrainState, restore_model
from armillary.train.evaluate import Evaluation, Evaluator
from armillary.train.folder.journal import Journal
from armillary.train.outcome import FINISHED, INTERRUPTED, NOT_FINITE, Outcome
from armillary.train.outfit import Outfit
from armillary.train.request import TrainRequest
from armillary.train.survive.bad_steps import BadSteps, RolledBack
from armillary.train.survive.stop import StopWish
from armillary.train.survive.stragglers import Stragglers
from armillary.train.survive.watch import Watch


class Trainer:
    """One rank's run: what it trains, feeds, evaluates and saves."""

    def __init__(
        self, request: TrainRequest, outfit: Outfit, wish: StopWish, watch: Watch | None = None
    ) -> None:
        assert request.run_path is not None
        self.request, self.outfit, self.wish = request, outfit, wish
        self.run_path, self.world = request.run_path, outfit.world
        self.watch = watch or Watch(rank=self.world.rank, hang_steps=0.0, least_s=0.0, ends=False)
        self.settings: TrainSettings = request.settings
        self.stepper, self.num_steps = outfit.stepper, outfit.num_steps
        self.journal = Journal(
            request, outfit.recipe, self.world, outfit.graph, outfit.splits, outfit.num_steps
        )
        self.cadence = Cadence(self.settings, request.plan)
        folder = self.run_path / "checkpoints"
        self.mirror = Mirror.of(self.settings.checkpoint_store, folder, self.world)
        self.checkpoints = Checkpoints(
            folder, self.world, self.settings.keep_checkpoints, self._committed
        )
        self.evaluator = self._evaluator("validation")
        self.stragglers = Stragglers(self.world)
        self.bad_steps = BadSteps(outfit, self.journal, self.checkpoints, self.watch, self.run_path)
        self.saved, self.loss = -1, math.nan

    @property
    def feed(self) -> Feed:
        """This rank's samples."""
        return self.outfit.feed

    @property
    def state(self) -> TrainState:
        """Model, optimiser and all else that a checkpoint holds."""
        return self.outfit.state

    @property
    def counters(self) -> Counters:
        """How far the run is."""
        return self.state.counters

    def run(self) -> Outcome:
        """Train until done, told to stop, or the loss is not finite; then evaluate the best."""
        if self.request.is_resumed:
            self.saved = self._resume()
        self.journal.begin(self.counters.step)
        outcome = self._train()
        self.watch.tick("test", COMMIT_TIMEOUT_S)
        if outcome.exit_code == FINISHED and "test" in self.outfit.splits:
            self._test()
        self.journal.event(outcome.num_steps, "ended", outcome.message)
        self.watch.tick("the end", float("inf"))
        if self.mirror is not None:
            self._say_all(self.mirror.finish())
        return outcome

    def close(self) -> None:
        """Write what the journal has not yet written."""
        self.journal.close()

    def _evaluator(self, split: str) -> Evaluator:
        evaluator = self.outfit.evaluator(split)
        evaluator.on_batch = lambda: self.watch.tick("evaluation", COMMIT_TIMEOUT_S)
        return evaluator

    def _resume(self) -> int:
        """Go on from the newest checkpoint that is whole; the step of it, -1 where a run that is
        started again by itself has none.
        """
        folder, note = self.checkpoints.folder, self.request.restart_note
        fetched = self.mirror.fetch_newer() if self.mirror is not None else []
        any_saved = [bool(saved_steps(folder))]
        if self.world.mesh is not None:
            dist.broadcast_object_list(any_saved)
        self.bad_steps.read()
        self._say_all(fetched)
        if note:
            self.journal.event(self.counters.step, "restarted", note)
        if note and not any_saved[0]:
            self.journal.event(0, "resumed", f"begun again on {self.request.layout}: none saved")
            return -1
        step, passed_over = newest_whole(folder, self.world)
        self.state.restore(checkpoint_path(folder, step), self.world)
        for message in passed_over:
            self.journal.event(step, "fallback", message)
        self.journal.event(step, "resumed", f"resumed after step {step} on {self.request.layout}")
        return step

    def _train(self) -> Outcome:
        if 0 < self.counters.step != self.counters.evaluated and self._evaluates():
            self._evaluate()  # the run was told to stop when it was due
        while not self._is_over():
            with contextlib.suppress(RolledBack):
                for step in self.feed.steps():
                    ended = self._advance(step)
                    if ended is not None:
                        return ended
                    if self._is_over():
                        break
        message = "finished" if self.counters.step >= self.num_steps else "stopped early"
        return self._end(FINISHED, self.loss, message)

    def _advance(self, step: Step) -> Outcome | None:
        """Do a step and what is due after it; the outcome if that ends the run."""
        started_s = time.perf_counter()
        stop = save = False
        if not self.bad_steps.pass_over(step):
            self.stepper.wants_save = self.world.is_first and self.cadence.is_due()
            result = self.stepper.run(step, self.counters.step, bool(self.wish))
            self.loss, stop, save = result.loss, result.stop, result.save
            if result.stepped:
                self._count(step, result, time.perf_counter() - started_s)
            elif not self.bad_steps.refuse(step, result, self.saved):
                return self._stop_not_finite(step, result)
        if self.counters.step == 1:
            prepare_to_save()
        self.checkpoints.poll()
        return self._keep(step, stop, save)

    def _keep(self, step: Step, stop: bool, save: bool) -> Outcome | None:
        """Evaluate and save where that is due; the outcome if the run was told to stop."""
        evaluates, saves = self._evaluates(), save or self._saves()
        if (stop or evaluates or saves) and not self.bad_steps.is_sound():
            self.bad_steps.refuse_parameters(step, self.saved)
            return self._stop_unsound()
        if stop:
            self._save()
            return self._end(INTERRUPTED, self.loss, "interrupted; saved, go on with --resume")
        if evaluates:
            self._evaluate()
        elif saves:
            self._save()
        return None

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
        self.state.guard.learned(step, result.loss)
        self.watch.stepped(self.counters.step, step_s)
        phases_s = self.outfit.phases.take()
        if self.counters.step % self.settings.log_every_steps == 0:
            self.journal.step(
                self.counters.step, step, result, step_s, phases_s, float(learning_rate)
            )
        for message in self.stragglers.add(phases_s):
            self.journal.event(self.counters.step, "straggler", message)

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

    def _evaluate(self) -> None:
        """Evaluate on validation, remember the best, and save."""
        average, monitor = self.state.average, self.outfit.recipe.monitor
        self.watch.tick("evaluation", COMMIT_TIMEOUT_S)
        with average.in_place() if average else contextlib.nullcontext():
            evaluation = self.evaluator.run(self.state.model)
        self.counters.evaluated = self.counters.step
        value = self._monitored(evaluation)
        direction = 1 if monitor.startswith("min:") else -1
        best = self.counters.best
        is_best = math.isfinite(value) and (best is None or direction * (value - best) < 0)
        self.counters.best = value if is_best else best
        self.counters.since_best = 0 if is_best else self.counters.since_best + 1
        self.journal.evaluation(self.counters.step, self.feed.epoch, "validation", evaluation)
        if is_best:
            self.journal.event(self.counters.step, "best", f"{monitor} {value:.6g}")
        self._save({"monitor": monitor, "value": value} if is_best else None)

    def _monitored(self, evaluation: Evaluation) -> float:
        name = self.outfit.recipe.monitor.partition(":")[2]
        return evaluation.loss if name == "loss" else evaluation.metrics[name]

    def _save(self, best: dict[str, Any] | None = None) -> None:
        self.watch.tick("checkpoint", COMMIT_TIMEOUT_S)
        save_s = self.checkpoints.save(self.counters.step, self.state.capture(), best)
        self.journal.checkpoint(self.counters.step, save_s)
        self.cadence.began(save_s)
        self.saved = self.counters.step
        self.watch.tick()

    def _committed(self, step: int, written_s: float) -> None:
        """On rank 0: a checkpoint is whole; send it on, and say once how often they come."""
        is_first = self.cadence.written(written_s)
        if is_first and math.isfinite(self.cadence.interval_s):
            self.journal.event(step, "cadence", str(self.cadence))
        if self.mirror is not None:
            self._say_all(self.mirror.send(step))

    def _say_all(self, messages: list[str]) -> None:
        for message in messages:
            self.journal.event(self.counters.step, "store", message)

    def _stop_not_finite(self, step: Step, result: StepResult) -> Outcome:
        """Save the state before the step that went wrong, if it is sound, and say which batch."""
        self.feed.position, self.feed.epoch = step.start, step.epoch
        message = self.bad_steps.in_words(step, result)
        if self.bad_steps.is_sound() and self.saved != self.counters.step:
            self._save()
        self.journal.event(self.counters.step, "nan", message)
        return self._end(NOT_FINITE, result.loss, message)

    def _stop_unsound(self) -> Outcome:
        """Stop before a state is saved whose parameters are not finite, though the losses were."""
        message = (
            f"parameters are not finite after step {self.counters.step}: a gradient after step "
            f"{self.saved} was not, though its loss was; clip_norm names the very step"
        )
        self.journal.event(self.counters.step, "nan", message)
        return self._end(NOT_FINITE, math.nan, message)

    def _end(self, exit_code: int, loss: float, message: str) -> Outcome:
        self.watch.tick("checkpoint", COMMIT_TIMEOUT_S)
        self.checkpoints.finish()
        if self.world.mesh is not None:
            dist.barrier()
        return Outcome(
            exit_code=exit_code,
            run_path=self.run_path,
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
            restore_model(self.state.model, path, serial=self.world.mesh is None)
        evaluation = self._evaluator("test").run(self.state.model)
        self.journal.evaluation(step, self.feed.epoch, "test", evaluation)
