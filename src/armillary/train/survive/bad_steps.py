"""A step that must not be learned from: its batch is skipped, or the run goes back, as allowed."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from armillary.step.batches import Step
from armillary.step.stepper import StepResult
from armillary.train.checkpoints.checkpoint import COMMIT_TIMEOUT_S, Checkpoints
from armillary.train.checkpoints.saved import checkpoint_path, newest_whole
from armillary.train.folder.journal import Journal
from armillary.train.outfit import Outfit
from armillary.train.survive.guard import IN_A_ROW, Place, read_skipped, write_skipped
from armillary.train.survive.watch import Watch


class RolledBack(Exception):
    """The state is that of an earlier step again; the epoch goes on from there."""


class BadSteps:
    """What a run does about steps whose loss is not finite or jumps, and about parameters that went
    bad; equal on every rank.

    `taken_out` are the batches that are passed over for good, by epoch and first position.
    """

    def __init__(
        self, outfit: Outfit, journal: Journal, checkpoints: Checkpoints, watch: Watch, run: Path
    ) -> None:
        self.outfit, self.state, self.world = outfit, outfit.state, outfit.world
        self.journal, self.checkpoints, self.watch, self.run = journal, checkpoints, watch, run
        self.taken_out: set[Place] = set()

    def read(self) -> None:
        """Take the batches out that an earlier start of the run has taken out."""
        known = [read_skipped(self.run)]
        if self.world.mesh is not None:
            dist.broadcast_object_list(known)
        self.taken_out = known[0]

    def pass_over(self, step: Step) -> bool:
        """Whether the batch of `step` was taken out; it is counted then, and not learned from."""
        if (step.epoch, step.start) not in self.taken_out:
            return False
        for _ in step.micro_batches:
            pass
        self._skip(step, "taken out when the run was rolled back")
        return True

    def refuse(self, step: Step, result: StepResult, saved: int) -> bool:
        """Skip a batch that is not to be learned from; whether that is allowed.

        Raises: `RolledBack` where the run goes back to the checkpoint `saved`, to before the
        parameters went bad.
        """
        guard, place = self.state.guard, (step.epoch, step.start)
        is_sound = self.is_sound()
        blamed: set[Place] = {place} if is_sound else set()
        if not is_sound or len(guard.in_a_row) + 1 >= IN_A_ROW:
            blamed |= {*guard.in_a_row} | ({guard.last} if guard.last else set())
            if saved >= 0 and self._may_skip(len(blamed - {*guard.in_a_row})):
                self._roll_back(blamed, self.in_words(step, result))
        elif self._may_skip(1):
            self._skip(step, self.in_words(step, result))
            guard.skipped(place)
            return True
        return False

    def refuse_parameters(self, step: Step, saved: int) -> None:
        """Go back to before the parameters went bad after `step`, if that is allowed.

        Raises: `RolledBack` where it is.
        """
        if saved >= 0 and self._may_skip(1):
            self._roll_back({(step.epoch, step.start)}, "the parameters are not finite")

    def is_sound(self) -> bool:
        """Whether the parameters are finite on every rank."""
        finite = all(bool(p.isfinite().all()) for p in _local(self.state.model))
        sound = torch.tensor([float(finite)])
        return float(self.world.sum(sound)) == self.world.batch_count

    def in_words(self, step: Step, result: StepResult) -> str:
        """What was wrong with a step, and its samples."""
        limit = self.state.guard.limit
        above = f", above {limit:.6g}" if result.loss > limit else ""
        norm = "" if result.grad_norm is None else f", gradient norm {result.grad_norm}"
        return (
            f"loss {result.loss}{above}{norm} at step "
            f"{self.state.counters.step + 1}: epoch {step.epoch}, positions {step.start} to "
            f"{step.start + step.num_samples - 1}, samples "
            f"{self.journal.name_samples(self.outfit.feed, step)}"
        )

    def _may_skip(self, num_more: int) -> bool:
        skipped = self.state.guard.num_skipped + len(self.taken_out)
        return skipped + num_more <= self.outfit.settings.skip_batches

    def _skip(self, step: Step, why: str) -> None:
        """Count a step that was not learned from."""
        if self.state.scheduler:
            self.state.scheduler.step()
        self.state.counters.step += 1
        self.outfit.phases.take()
        self.watch.tick()
        self.journal.skipped(self.state.counters.step, step, why)

    def _roll_back(self, blamed: set[Place], why: str) -> None:
        """Take the state of the newest checkpoint, and the blamed batches out of what follows.

        Raises: `RolledBack`, always.
        """
        from_step = self.state.counters.step
        self.watch.tick("checkpoint", COMMIT_TIMEOUT_S)
        self.checkpoints.finish()
        self.taken_out |= blamed
        if self.world.is_first:
            write_skipped(self.run, self.taken_out)
        step, _ = newest_whole(self.checkpoints.folder, self.world)
        self.state.restore(checkpoint_path(self.checkpoints.folder, step), self.world)
        places = ", ".join(f"epoch {epoch} position {start}" for epoch, start in sorted(blamed))
        self.journal.event(
            step, "rolled-back", f"from step {from_step} to {step}: {why}; taken out: {places}"
        )
        self.watch.tick()
        raise RolledBack


def _local(model: nn.Module) -> list[torch.Tensor]:
    """The parts of the parameters that this rank holds."""
    return [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
