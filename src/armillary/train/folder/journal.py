"""What rank 0 writes and says of a run: manifest, metrics, trackers, progress, predictions."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from armillary.feeds import SampleOrder
from armillary.spec import Manifest, ModelGraph
from armillary.spec.secrets import withheld
from armillary.step.batches import Feed, Step, fingerprint
from armillary.step.recipe import Recipe
from armillary.step.stepper import StepResult
from armillary.step.versions import versions
from armillary.step.world import World
from armillary.train.evaluate import Evaluation
from armillary.train.folder.environment import git_state, hardware, measured_memory_bytes
from armillary.train.folder.progress import ProgressReport
from armillary.train.folder.run_folder import RunFolder
from armillary.train.folder.trackers import Tracker, open_trackers
from armillary.train.request import TrainRequest

NUM_NAMED_SAMPLES = 16


class Journal:
    """The record of a run. On any rank but 0 every method does nothing."""

    def __init__(
        self,
        request: TrainRequest,
        recipe: Recipe,
        world: World,
        graph: ModelGraph,
        splits: Mapping[str, Any],
        num_steps: int,
    ) -> None:
        assert request.run_path is not None
        self.request, self.recipe, self.world = request, recipe, world
        self.graph, self.splits, self.num_steps = graph, splits, num_steps
        self.folder = RunFolder(request.run_path)
        self.trackers: list[Tracker] = []
        self.progress: ProgressReport | None = None
        self._is_writer = world.is_first
        self._started_s = time.monotonic() - self._spent_s()

    def begin(self, done: int) -> None:
        """Write the manifest and open the trackers; `done` steps lie behind."""
        if not self._is_writer:
            return
        if not (self.folder.path / "manifest.json").exists():
            self.folder.write_start(self._manifest(), self.recipe.files)
        if self.request.plan is not None:
            self.request.plan.write(self.folder.path / "plan.json")
        parameters = {"layout": str(self.request.layout)} | self.request.settings.to_dict()
        self.trackers = open_trackers(
            self.request.trackers,
            self.folder.path,
            self.recipe.name,
            parameters | dict(self.request.options),
        )
        self.progress = ProgressReport(
            quiet=self.request.quiet, num_steps=self.num_steps, done=done
        )
        self._say(
            f"{self.recipe.name}: {self.graph.num_parameters:,} parameters, "
            f"{len(self.splits['train']):,} samples, {self.num_steps:,} steps, "
            f"{self.request.layout} on {self.world.num_ranks} "
            f"{self.world.device.type} rank{'s' * (self.world.num_ranks > 1)} "
            f"-> {self.folder.path}"
        )

    def _manifest(self) -> Manifest:
        return Manifest(
            recipe=self.request.recipe_word,
            recipe_sha256=self.recipe.sha256,
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            layout=self.request.layout,
            settings=self.request.settings,
            options=self.request.options,
            monitor=self.recipe.monitor,
            num_samples={name: len(split) for name, split in self.splits.items()},
            data_fingerprint={name: fingerprint(split) for name, split in self.splits.items()},
            num_parameters=self.graph.num_parameters,
            versions=versions(),
            git=git_state(self.recipe.source.parent),
            hardware=hardware(self.world.device, self.world.num_ranks),
        )

    def step(
        self,
        index: int,
        step: Step,
        result: StepResult,
        step_s: float,
        phases_s: dict[str, float],
        learning_rate: float,
    ) -> None:
        """Record the step that was the `index`-th."""
        if not self._is_writer:
            return
        line = {
            "kind": "step",
            "time_s": self._time_s(),
            "step": index,
            "epoch": step.epoch,
            "position": step.start + step.num_samples,
            "loss": result.loss,
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "samples": step.num_samples,
            "step_s": step_s,
            "phases_s": phases_s | {"other": max(step_s - sum(phases_s.values()), 0.0)},
            "memory_bytes": measured_memory_bytes(self.world.device),
        }
        self.folder.append(line)
        self._track(
            {
                "train/loss": result.loss,
                "train/learning_rate": learning_rate,
                "train/samples_per_s": step.num_samples / step_s,
            },
            index,
        )
        if self.progress is not None:
            self.progress.step(line)

    def evaluation(self, index: int, epoch: int, split: str, evaluation: Evaluation) -> None:
        """Record an evaluation of the state after `index` steps; keep a test's predictions."""
        if not self._is_writer:
            return
        self.folder.append(
            {
                "kind": "evaluation",
                "time_s": self._time_s(),
                "step": index,
                "epoch": epoch,
                "split": split,
                "loss": evaluation.loss,
                "metrics": dict(evaluation.metrics),
                "evaluation_s": evaluation.evaluation_s,
            }
        )
        values = {"loss": evaluation.loss} | dict(evaluation.metrics)
        self._track({f"{split}/{name}": value for name, value in values.items()}, index)
        if split == "test" and evaluation.predictions:
            self.folder.write_predictions("test", evaluation.predictions)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._say(f"step {index}  {split}  {shown}")

    def checkpoint(self, index: int, save_s: float) -> None:
        """Record that a checkpoint of the state after `index` steps was begun."""
        if self._is_writer:
            self.folder.append(
                {"kind": "checkpoint", "time_s": self._time_s(), "step": index, "save_s": save_s}
            )

    def skipped(self, index: int, step: Step, why: str) -> None:
        """Record and say that the step that was the `index`-th was not learned from."""
        place = {"epoch": step.epoch, "position": step.start + step.num_samples}
        self._event(index, "skipped", why, place | {"samples": step.num_samples})

    def event(self, index: int, what: str, message: str) -> None:
        """Record and say what happened after `index` steps."""
        self._event(index, what, message, {})

    def _event(self, index: int, what: str, message: str, more: dict[str, Any]) -> None:
        if not self._is_writer:
            return
        line = {"kind": "event", "time_s": self._time_s(), "step": index, "what": what}
        self.folder.append(line | {"message": message} | more)
        if what != "best":
            self._say(f"{what}: {message}")

    def name_samples(self, feed: Feed, step: Step) -> str:
        """The indices of a step's samples in the training split, the first of them if many."""
        order: SampleOrder = feed.order
        stop = min(step.num_samples, NUM_NAMED_SAMPLES) + step.start
        indices = order.at(step.epoch, np.arange(step.start, stop))
        more = ", ..." * (step.num_samples > NUM_NAMED_SAMPLES)
        return ", ".join(map(str, indices.tolist())) + more

    def close(self) -> None:
        """Write what is not yet written, and end the bar."""
        if self.progress is not None:
            self.progress.close()
        for tracker in self.trackers:
            tracker.close()
        self.folder.close()

    def _spent_s(self) -> float:
        """Seconds that the run took before it was resumed, by its own clock."""
        lines = self.folder.metrics() if self._is_writer and self.request.is_resumed else []
        return float(lines[-1]["time_s"]) if lines else 0.0

    def _time_s(self) -> float:
        return round(time.monotonic() - self._started_s, 6)

    def _track(self, scalars: dict[str, float], index: int) -> None:
        for tracker in self.trackers:
            tracker.log(scalars, index)

    def _say(self, message: str) -> None:
        if self.progress is not None:
            self.progress.say(withheld(message))
