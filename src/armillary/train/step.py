"""One optimiser step: micro batches forward and backward, one mean over all ranks' samples."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from armillary.feeds import mix
from armillary.spec import SpecError
from armillary.train.batches import Step, seed_all
from armillary.train.parallel import to_device
from armillary.train.phases import Phases
from armillary.train.precision import Precision
from armillary.train.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step gave, equal on every rank: the mean loss, and whether any rank was told to stop.

    `grad_norm` is that before clipping, None if nothing was clipped; `stepped` is False where the
    loss or the norm was not finite and the parameters were left as they were.
    """

    loss: float
    grad_norm: float | None
    stop: bool
    stepped: bool


class Stepper:
    """Does steps: model, optimiser and precision of one rank, and the recipe's loss."""

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

    def run(self, step: Step, index: int, stop: bool) -> StepResult:
        """Train on `step`, the `index`-th of the run; `stop` says that this rank was told to."""
        sums = torch.zeros(3, dtype=torch.float64)
        sums[2] = float(stop)
        for i in range(step.num_micro_batches):
            with self.phases("data"):
                batch, num_samples = next(step.micro_batches)
                batch = to_device(batch, self.world.device, self.precision.dtype)
            seed_all(mix(self.seed, index, self.world.batch_index, i), self.world.device)
            self._synchronize_gradients(i == step.num_micro_batches - 1)
            self._forward_backward(batch, num_samples, step.num_samples, sums)
        with self.phases("reduce"):
            total, count, stops = self.world.sum(sums).tolist()
        loss = total / count if count else math.nan
        with self.phases("optimizer"):
            finite, grad_norm = self._update(loss, step.num_samples / (count or 1.0))
        return StepResult(loss=loss, grad_norm=grad_norm, stop=stops > 0, stepped=finite)

    def _synchronize_gradients(self, is_last: bool) -> None:
        synchronize = getattr(self.model, "set_requires_gradient_sync", None)
        if synchronize is not None:
            synchronize(is_last)

    def _forward_backward(
        self, batch: Any, num_samples: int, num_step_samples: int, sums: torch.Tensor
    ) -> None:
        """Add a micro batch to the gradients, and its loss and count to the first two of `sums`.

        The axes average gradients over the ranks that split the batch, so each rank's part is
        multiplied by their number.
        """
        with self.phases("forward"), self.precision.autocast():
            total, count = _total(self.loss(self.model, batch), num_samples)
        with self.phases("backward"):
            weight = self.world.batch_count / num_step_samples
            if num_samples == 0:
                weight = 0.0
            self.precision.scaler.scale(total * weight).backward()
        if num_samples:
            sums[0] += float(total.detach())
            sums[1] += count

    def _update(self, loss: float, factor: float) -> tuple[bool, float | None]:
        """Step the optimiser on gradients multiplied by `factor`, clipped; whether all is finite.

        A float16 step whose gradients overflow is skipped by the scaler, which then scales less.
        """
        scaler = self.precision.scaler
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        scaler.unscale_(self.optimizer) if scaler.is_enabled() else None
        if factor != 1.0:
            torch._foreach_mul_([p.grad for p in parameters], factor)  # type: ignore[misc]
        grad_norm = None
        if self.clip_norm:
            grad_norm = _clip(parameters, self.clip_norm)
        finite = math.isfinite(loss) and (
            scaler.is_enabled() or grad_norm is None or math.isfinite(grad_norm)
        )
        if finite:
            scaler.step(self.optimizer)
            scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return finite, grad_norm


def _clip(parameters: list[nn.Parameter], clip_norm: float) -> float:
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _total(found: Any, num_samples: int) -> tuple[torch.Tensor, float]:
    """What `loss` returned as (sum, count): a mean is a sum over the samples of its batch."""
    if isinstance(found, tuple) and len(found) == 2:
        total, count = found
        return total, float(count)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise SpecError(
            "recipe.loss",
            f"returned {shape}",
            "loss returns one number, the mean over the batch, or (sum, count)",
            "end it with .mean(), or return (losses.sum(), losses.numel())",
        )
    return found.reshape(()) * max(num_samples, 1), float(num_samples)
