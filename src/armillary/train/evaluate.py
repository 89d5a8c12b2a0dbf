"""Evaluation over a whole split: the mean loss over its samples, and metrics of all predictions."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from armillary.axes.batch.ranks import note_samples
from armillary.axes.compose import computing
from armillary.feeds import Share, mix
from armillary.spec import SpecError
from armillary.step.batches import Feed, seed_all
from armillary.step.parallel import plain, to_device
from armillary.step.precision import Precision
from armillary.step.recipe import Recipe
from armillary.step.world import World

Predictions = dict[str, NDArray[Any]]
Columns = dict[str, list[Any]]  # one entry a sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A split's mean loss and metrics, on every rank; the predictions, on rank 0 alone."""

    loss: float
    metrics: Mapping[str, float]
    evaluation_s: float
    predictions: Predictions = field(default_factory=dict)


class Evaluator:
    """Evaluates one split; every rank takes its share, and no sample counts twice.

    `on_batch` is called after every batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Any,
        world: World,
        precision: Precision,
        batch_size: int,
        micro_batch_size: int = 0,
    ) -> None:
        self.recipe, self.world, self.precision = recipe, world, precision
        self.on_batch: Callable[[], None] = lambda: None
        self.feed = Feed(
            dataset,
            batch_size=batch_size,
            share=Share(
                index=world.batch_index,
                count=world.batch_count,
                micro_batch_size=micro_batch_size,
            ),
            collate=recipe.find("collate"),
        )

    def run(self, model: nn.Module) -> Evaluation:
        """The evaluation of `model`, which is left in the mode it was in."""
        start_s = time.perf_counter()
        was_training = model.training
        model.eval()
        try:
            sums, parts = self._forward_all(model)
        finally:
            model.train(was_training)
        total, count = self.world.sum(sums).tolist()
        predictions = self._gather(parts)
        return Evaluation(
            loss=total / count if count else math.nan,
            metrics=self._metrics(predictions),
            evaluation_s=time.perf_counter() - start_s,
            predictions=predictions,
        )

    def predict(self, model: nn.Module) -> Predictions:
        """The recipe's predictions alone, on rank 0, of samples that may have no truth."""
        model.eval()
        _, parts = self._forward_all(model, with_loss=False)
        return self._gather(parts)

    @torch.no_grad()
    def _forward_all(
        self, model: nn.Module, *, with_loss: bool = True
    ) -> tuple[torch.Tensor, list[Columns]]:
        sums = torch.zeros(2, dtype=torch.float64)
        predict = self.recipe.find("predict")
        steps = []
        self.feed.epoch = 0  # every evaluation meets the same random numbers
        for step in self.feed.steps():
            parts = []
            for i, (batch, num_samples) in enumerate(step.micro_batches):
                batch = to_device(batch, self.world.device, self.precision.dtype)
                seed_all(mix(step.start, self.world.batch_index, i), self.world.device)
                note_samples(num_samples)
                with computing(model), self.precision.autocast():
                    found = plain(self.recipe.loss(model, batch)) if with_loss else 0.0
                    outputs = plain(predict(model, batch)) if predict else {}
                if num_samples:
                    sums += _loss_sums(found, num_samples)
                    parts.append(_split_samples(outputs, num_samples))
                self.on_batch()
            steps.append(_joined(parts))
        return sums, steps

    def _gather(self, steps: list[Columns]) -> Predictions:
        """All ranks' predictions in the order of the data set, on rank 0; empty elsewhere."""
        if self.recipe.find("predict") is None:
            return {}
        if self.world.mesh is None:
            return _stacked(_joined(steps))
        everyone: list[Any] | None = [None] * self.world.num_ranks if self.world.is_first else None
        dist.gather_object((self.world.batch_index, steps), everyone)
        if everyone is None:
            return {}
        by_index = dict(everyone)
        ordered = [by_index[i][s] for s in range(len(steps)) for i in range(len(by_index))]
        return _stacked(_joined(ordered))

    def _metrics(self, predictions: Predictions) -> dict[str, float]:
        """The recipe's metrics, computed on rank 0 and told to all."""
        metrics = self.recipe.find("metrics")
        if metrics is None:
            return {}
        values: list[Any] = [None]
        if self.world.is_first:
            values = [{name: float(value) for name, value in metrics(predictions).items()}]
        if self.world.mesh is not None:
            dist.broadcast_object_list(values)
        return values[0]


def _loss_sums(found: Any, num_samples: int) -> torch.Tensor:
    """(sum of the loss, number of units) of a batch, from the mean or sum that `loss` gave."""
    is_sum = isinstance(found, tuple)
    total, units = found if is_sum else (found * num_samples, num_samples)
    return torch.tensor([float(total), float(units)], dtype=torch.float64)


def _split_samples(outputs: Mapping[str, torch.Tensor], num_samples: int) -> Columns:
    """The outputs of a batch by sample, each cut to its length if "lengths" are among them."""
    lengths = outputs.get("lengths")
    columns = {}
    for name, tensor in outputs.items():
        if len(tensor) != num_samples:
            raise SpecError(
                f"recipe.predict[{name!r}]",
                f"{len(tensor)} rows for {num_samples} samples",
                "the first dim of a prediction is the sample",
                "return one row a sample",
            )
        array = (
            tensor.detach().float().cpu().numpy()
            if tensor.dtype in _HALF
            else (tensor.detach().cpu().numpy())
        )
        is_padded = lengths is not None and array.ndim > 1
        columns[name] = [
            row[: int(lengths[i])] if lengths is not None and is_padded else row
            for i, row in enumerate(array)
        ]
    return columns


_HALF = (torch.bfloat16, torch.float16)


def _joined(parts: list[Columns]) -> Columns:
    """The samples of `parts`, one after another; a part of no samples has no columns."""
    joined: Columns = {}
    for part in parts:
        for name, rows in part.items():
            joined.setdefault(name, []).extend(rows)
    return joined


def _stacked(columns: Columns) -> Predictions:
    """Columns as arrays [N, ...], or of N arrays where their lengths differ."""
    stacked = {}
    for name, rows in columns.items():
        if len({np.shape(row) for row in rows}) == 1:
            stacked[name] = np.stack(rows)
        else:
            stacked[name] = np.empty(len(rows), dtype=object)
            stacked[name][:] = rows
    return stacked
