"""One optimiser step: micro batches forward and backward, one mean over all ranks' samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from armillary.axes import DrivesSteps
from armillary.axes.batch.ranks import note_samples
from armillary.axes.compose import computing
from armillary.axes.door import parts
from armillary.axes.partial import add_up_gradients
from armillary.axes.reduction import synchronize
from armillary.feeds import mix
from armillary.models.experts import BalanceBias
from armillary.spec import SpecError
from armillary.step.batches import Step, seed_all
from armillary.step.clip import clip_gradients
from armillary.step.parallel import plain, to_device
from armillary.step.phases import Phases
from armillary.step.precision import Precision
from armillary.step.whole_matrices import whole_matrices
from armillary.step.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step gave, equal on every rank: the mean loss, and whether any rank was told to stop.

    `grad_norm` is that before clipping, None if nothing was clipped; `stepped` is False where the
    loss or the norm was not finite, or the loss was refused, and the parameters were left as they
    were. `save` says that a rank asked for a checkpoint.
    """

    loss: float
    grad_norm: float | None
    stop: bool
    stepped: bool
    save: bool = False


class Stepper:
    """Does steps: model, optimiser and precision of one rank, and the recipe's loss.

    `wants_save` is this rank's wish for a checkpoint after the next step, which all then know of.
    `refuses`, if set, says of a step's loss that it is not to be learned from; it is asked on every
    rank with the same loss.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        loss: Any,
        optimizer: Optimizer,
        world: World,
        precision: Precision,
        phases: Phases,
        clip_norm: float,
        seed: int,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.world, self.precision, self.phases = world, precision, phases
        self.clip_norm, self.seed = clip_norm, seed
        self.wants_save = False
        self.refuses: Callable[[float], bool] | None = None

    def run(self, step: Step, index: int, stop: bool) -> StepResult:
        """Train on `step`, the `index`-th of the run; `stop` says that this rank was told to."""
        sums = torch.zeros(4, dtype=torch.float64)
        sums[2], sums[3] = float(stop), float(self.wants_save)
        runs_all = self._drive if isinstance(self.model, DrivesSteps) else self._run_each
        with computing(self.model):
            sums[:2] += runs_all(step, index)
        with self.phases("reduce"):
            total, count, stops, saves = self.world.sum(sums).tolist()
        loss = total / count if count else math.nan
        with self.phases("optimizer"):
            add_up_gradients(self.model.parameters())
            finite, grad_norm = self.update(loss, step.num_samples / (count or 1.0))
        return StepResult(
            loss=loss, grad_norm=grad_norm, stop=stops > 0, stepped=finite, save=saves > 0
        )

    def _run_each(self, step: Step, index: int) -> torch.Tensor:
        """The sums of loss and count over the micro batches, run one after another."""
        sums = torch.zeros(2, dtype=torch.float64)
        for i in range(step.num_micro_batches):
            batch, num_samples = self._next(step)
            seed_all(mix(self.seed, index, self.world.batch_index, i), self.world.device)
            synchronize(self.model, i == step.num_micro_batches - 1)
            with self.phases("forward"):
                loss = self._weighted(self.model, batch, num_samples, step.num_samples, sums)
            with self.phases("backward"):
                loss.backward()
        return sums

    def _drive(self, step: Step, index: int) -> torch.Tensor:
        """The same by a model that runs all micro batches of a step in an order of its own."""
        assert isinstance(self.model, DrivesSteps)
        batches = [self._next(step) for _ in range(step.num_micro_batches)]
        sums = torch.zeros(2, dtype=torch.float64)

        def loss_of(i: int) -> Any:
            batch, num_samples = batches[i]

            def loss(model: nn.Module) -> torch.Tensor:
                seed_all(mix(self.seed, index, self.world.batch_index, i), self.world.device)
                return self._weighted(model, batch, num_samples, step.num_samples, sums)

            return loss

        with self.phases("forward"):  # and backward, which come in turn
            return self.model.forward_backward(
                [loss_of(i) for i in range(len(batches))], lambda: sums
            )

    def _next(self, step: Step) -> tuple[Any, int]:
        with self.phases("data"):
            batch, num_samples = next(step.micro_batches)
            return to_device(batch, self.world.device, self.precision.dtype), num_samples

    def _weighted(
        self, model: nn.Module, batch: Any, num_samples: int, num_step_samples: int, sums: Any
    ) -> torch.Tensor:
        """The loss of a micro batch as it enters the gradients; loss and count are added to `sums`.

        The axes average gradients over the ranks that split the batch, so each rank's part is
        multiplied by their number.
        """
        note_samples(num_samples)
        with self.precision.autocast():
            total, count = _total(self.loss(model, batch), num_samples)
        weight = self.world.batch_count / num_step_samples
        if num_samples:
            sums += torch.tensor([float(total.detach()), count], dtype=torch.float64)
        scaled: torch.Tensor = self.precision.scaler.scale(total * (weight if num_samples else 0.0))
        return scaled

    def update(self, loss: float, factor: float) -> tuple[bool, float | None]:
        """Step the optimiser on gradients multiplied by `factor`, clipped; whether all is finite.

        A float16 step whose gradients overflow is skipped by the scaler, which then scales less.
        """
        scaler = self.precision.scaler
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if scaler.is_enabled():
            scaler.unscale_(self.optimizer)
        if factor != 1.0:
            torch._foreach_mul_([p.grad for p in parameters], factor)  # type: ignore[misc]
        grad_norm = None
        if self.clip_norm:
            grad_norm = clip_gradients(parameters, self.clip_norm, self.world.mesh)
        finite = math.isfinite(loss) and (
            scaler.is_enabled() or grad_norm is None or math.isfinite(grad_norm)
        )
        finite = finite and not (self.refuses is not None and self.refuses(loss))
        if finite:
            with whole_matrices(self.optimizer):
                scaler.step(self.optimizer)
            scaler.update()
            for part in parts(self.model):
                for module in part.modules():
                    if isinstance(module, BalanceBias):
                        module.after_step()
        self.model.zero_grad(set_to_none=True)  # also what the optimiser does not hold
        return finite, grad_norm


def _total(found: Any, num_samples: int) -> tuple[torch.Tensor, float]:
    """What `loss` returned as (sum, count): a mean is a sum over the samples of its batch."""
    if isinstance(found, tuple) and len(found) == 2:
        total, count = found
        return plain(total), float(plain(count))
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise SpecError(
            "recipe.loss",
            f"returned {shape}",
            "loss returns one number, the mean over the batch, or (sum, count)",
            "end it with .mean(), or return (losses.sum(), losses.numel())",
        )
    return plain(found).reshape(()) * max(num_samples, 1), float(num_samples)
