"""The loops that are compared: ours, torch by hand, Accelerate and Lightning Fabric.

All train the same model from the same values on the same samples in the same order, and read the
loss of every step. Ours shuffles; the others are given the samples already in that order.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from armillary.feeds import SampleOrder
from armillary.spec import Layout
from armillary.train.folder.run_folder import RunFolder
from armillary.train.heap import keep_freed_memory
from armillary.train.rank import train_rank
from armillary.train.request import new_request
from armillary.train.survive.stop import StopWish
from benchmarks.turns import Turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Race:
    """What a contender trains: a case under a layout, for some steps; ours writes to `runs`."""

    case: ModuleType
    layout: Layout
    num_steps: int
    runs: Path

    @property
    def num_ranks(self) -> int:
        """The number of ranks."""
        return self.layout.num_ranks

    @property
    def rank_batch_size(self) -> int:
        """The samples of a step that one rank computes."""
        return int(self.case.settings["global_batch_size"]) // self.num_ranks

    def model(self) -> nn.Module:
        """The case's model with the values of seed 0."""
        torch.manual_seed(0)
        return self.case.model()

    def samples(self) -> Dataset[Any]:
        """The case's training samples, in the order in which ours takes them."""
        train = self.case.data()["train"]
        order = SampleOrder(num_samples=len(train), seed=0)
        return Subset(train, order.at(0, torch.arange(len(train)).numpy()).tolist())


def armillary(race: Race, turn: Turn) -> list[float]:
    """`armillary train` as one of a launcher's ranks, with all that it writes by default."""

    def wait_for_turn(wish: StopWish) -> bool:
        turn()  # the loop looks whether it is to stop once before each step
        return False

    StopWish.__bool__ = wait_for_turn
    assert race.case.__file__ is not None
    request = new_request(
        race.case.__file__,
        layout=race.layout,
        assignments={"max_steps": str(race.num_steps)},
        runs=race.runs,
        device="cpu",
    )
    outcome = train_rank(request)
    lines = RunFolder(outcome.run_path).metrics()
    return [line["loss"] for line in lines if line["kind"] == "step"]


def by_hand(race: Race, turn: Turn) -> list[float]:
    """The loop that one writes with torch alone: DDP or fully_shard, sampler, loader."""
    model, train = race.model(), race.samples()
    sampler = None
    if race.num_ranks > 1:
        dist.init_process_group("gloo")
        model = _parallel_by_hand(model, race)
        sampler = DistributedSampler(train, shuffle=False)
    loader = DataLoader(train, race.rank_batch_size, sampler=sampler)
    optimizer = race.case.optimizer(model.parameters())
    return _loop(race, turn, model, optimizer, loader, torch.Tensor.backward)


def by_hand_with_heap(race: Race, turn: Turn) -> list[float]:
    """The same with freed memory kept as ours keeps it: what is left is the loops' difference."""
    keep_freed_memory()
    return by_hand(race, turn)


def _parallel_by_hand(model: nn.Module, race: Race) -> nn.Module:
    if race.layout.degree("sharded") == 1:
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (race.num_ranks,))
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def accelerate(race: Race, turn: Turn) -> list[float]:
    """The loop that Accelerate's documentation shows."""
    from accelerate import Accelerator

    model, train = race.model(), race.samples()
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == race.num_ranks
    model, optimizer, loader = accelerator.prepare(
        model, race.case.optimizer(model.parameters()), DataLoader(train, race.rank_batch_size)
    )
    return _loop(race, turn, model, optimizer, loader, accelerator.backward)


def fabric(race: Race, turn: Turn) -> list[float]:
    """The loop that Lightning Fabric's documentation shows."""
    from lightning_fabric import Fabric

    model, train = race.model(), race.samples()
    lightning = Fabric(accelerator="cpu", devices=race.num_ranks, strategy=_strategy(race))
    lightning.launch()
    model = lightning.setup(model)
    optimizer = lightning.setup_optimizers(race.case.optimizer(model.parameters()))
    loader = lightning.setup_dataloaders(DataLoader(train, race.rank_batch_size))
    return _loop(race, turn, model, optimizer, loader, lightning.backward)


def _strategy(race: Race) -> Any:
    from lightning_fabric.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    def sharded(model: nn.Module, mesh: Any) -> nn.Module:
        for block in getattr(model, "blocks", ()):
            fully_shard(block, mesh=mesh["data_parallel"])
        return fully_shard(model, mesh=mesh["data_parallel"])

    if race.layout.degree("sharded") > 1:
        return ModelParallelStrategy(sharded, race.num_ranks, 1)
    return "ddp" if race.num_ranks > 1 else "auto"


def _loop(
    race: Race,
    turn: Turn,
    model: nn.Module,
    optimizer: Any,
    loader: Iterable[Any],
    backward: Callable[[torch.Tensor], None],
) -> list[float]:
    """The steps that all but ours share word for word; the losses, means over ranks."""
    losses: list[float] = []
    turn()
    for batch in loader:
        optimizer.zero_grad()
        loss = race.case.loss(model, batch)
        backward(loss)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) == race.num_steps:
            break
        turn()
    means = torch.tensor(losses, dtype=torch.float64)
    if race.num_ranks > 1:
        dist.all_reduce(means)
    return (means / race.num_ranks).tolist()


CONTENDERS: dict[str, Callable[[Race, Turn], list[float]]] = {
    "armillary": armillary,
    "torch by hand": by_hand,
    "torch by hand, heap kept": by_hand_with_heap,
    "accelerate": accelerate,
    "fabric": fabric,
}
# Accelerate on a CPU takes fully_shard for DDP without a word (1.15.0).
ABSENT = {("accelerate", "sharded")}
