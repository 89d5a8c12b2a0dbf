"""The state of a run, as a checkpoint holds it: independent of the layout that wrote it."""

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map_only

from armillary.feeds import FeedState
from armillary.spec import SpecError
from armillary.step.batches import Feed
from armillary.step.world import World
from armillary.train.average import Average
from armillary.train.checkpoints.saved import holds, load
from armillary.train.survive.guard import Guard

PLAIN = (type(None), bool, int, float, str, bytes)


@dataclass(slots=True)
class Counters:
    """How far a run is: steps done and the last of them that was followed by an evaluation, the
    best monitored value, and evaluations since it.
    """

    step: int = 0
    evaluated: int = 0
    best: float | None = None
    since_best: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """All that a run needs to go on: model, optimiser, scheduler, scaler, feed and counters.

    Random numbers need no state: they are functions of the seed, the step and the place in the
    batch (step/stepper.py) or of the seed, the epoch and the position (step/batches.py).
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    feed: Feed
    counters: Counters
    average: Average | None = None
    guard: Guard = field(default_factory=Guard)

    def capture(self) -> dict[str, Any]:
        """The state as a dict that torch's distributed checkpoint writes; tensors not copied."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self.model, self.optimizer)
        optimizer["param_groups"] = _plain(optimizer["param_groups"])
        state = {"model": model, "optimizer": optimizer, "progress": _packed(self._progress())}
        return state | ({"average": self.average.values} if self.average else {})

    def _progress(self) -> dict[str, Any]:
        return {
            "counters": asdict(self.counters),
            "feed": asdict(self.feed.state),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
            "scaler": self.scaler.state_dict(),
            "guard": self.guard.to_dict(),
        }

    def restore(self, path: Path, world: World) -> None:
        """Fill model, optimiser, scheduler, scaler, feed and counters from a checkpoint.

        Raises: `SpecError` if the data is not that of the checkpoint.
        """
        from torch.distributed.checkpoint.state_dict import set_state_dict

        state = self.capture()
        own_names = [[*group["params"]] for group in state["optimizer"]["param_groups"]]
        load(path, state, serial=world.mesh is None)
        for group, names in zip(state["optimizer"]["param_groups"], own_names, strict=True):
            group["params"] = names  # those saved are of one rank, whose stage may be another
        progress = _unpacked(state["progress"])
        self.feed.restore(FeedState(**progress["feed"]))
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        if self.scheduler:
            self.scheduler.load_state_dict(progress["scheduler"])
        if progress["scaler"]:
            self.scaler.load_state_dict(progress["scaler"])
        self.guard.restore(progress["guard"])
        for name, value in progress["counters"].items():
            setattr(self.counters, name, value)


def restore_model(model: nn.Module, path: Path, *, serial: bool) -> None:
    """Fill the parameters and buffers of `model` from the checkpoint at `path`, in place.

    Where the run kept an average of its parameters, that is what the model gets.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    state = {"model": get_model_state_dict(model)}
    load(path, state, serial=serial)
    set_model_state_dict(model, state["model"])
    if holds(path, "average"):
        average = Average(model, 0.0)
        load(path, {"average": average.values}, serial=serial)
        average.swap()


def _packed(values: dict[str, Any]) -> bytes:
    """`values` as bytes."""
    content = io.BytesIO()
    torch.save(_plain(values), content)
    return content.getvalue()


def _plain(values: Any) -> Any:
    """`values` with NumPy's numbers as Python's, which a schedule may set in an optimiser.

    Raises: `SpecError` on what is neither a tensor nor plain: it would be saved, and not be read.
    """
    plain = tree_map_only(np.generic, lambda number: number.item(), values)
    for leaf in tree_leaves(plain):
        if not isinstance(leaf, torch.Tensor) and type(leaf) not in PLAIN:
            raise SpecError(
                "checkpoint",
                f"{leaf!r} of type {type(leaf).__name__} in the state of the optimiser or schedule",
                "a checkpoint holds tensors, numbers and words (train/checkpoints/shards.py)",
                "use a number instead",
            )
    return plain


def _unpacked(content: bytes) -> dict[str, Any]:
    values: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return values
