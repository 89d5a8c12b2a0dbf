"""One rank of the checkpoint comparison: `python -m benchmarks.checkpoint_rank LAYOUT ROUNDS OUT`.

In turn: our save, torch.save by rank 0 while the others wait, torch's distributed save, and none.
Each is followed by some steps, since a save that goes on beside training also slows these.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from armillary.spec import Layout
from armillary.step.batches import Step
from armillary.step.world import World, join
from armillary.train.loop import Trainer
from armillary.train.outfit import fit_out
from armillary.train.request import new_request
from armillary.train.survive.stop import StopWish
from benchmarks.cases import gpt

NUM_STEPS_AFTER = 4


def main(layout_words: str, num_rounds: int, out: Path) -> None:
    """Run the comparison as this rank; rank 0 writes [hold-up, steps after] seconds of each."""
    layout = Layout.parse(layout_words)
    assert gpt.__file__ is not None
    with tempfile.TemporaryDirectory() as own, join(layout, "cpu") as world:
        folders = [Path(own)]
        if world.mesh is not None:
            dist.broadcast_object_list(folders)
        request = new_request(gpt.__file__, layout=layout, runs=folders[0])
        request = replace(request, run_path=folders[0] / "run")
        outfit = fit_out(request, request.load_recipe(), world)
        trainer = Trainer(request, outfit, StopWish())
        found = _compete(trainer, world, folders[0], num_rounds)
        if world.is_first:
            size = sum(f.stat().st_size for f in folders[0].glob("run/checkpoints/*/*"))
            out.write_text(json.dumps({"layout": str(layout), "bytes": size, "saves": found}))
        _wait(world)


def _compete(
    trainer: Trainer, world: World, folder: Path, num_rounds: int
) -> dict[str, list[list[float]]]:
    count = iter(range(10**6))
    savers: dict[str, Callable[[], object]] = {
        "armillary": lambda: trainer.checkpoints.save(next(count), trainer.state.capture()),
        "torch.save": lambda: _torch_save(trainer, world, folder / "whole.pt"),
        "torch distributed save": lambda: _distributed_save(trainer, world, folder / "parts"),
        "none": lambda: None,
    }
    steps = trainer.feed.steps()
    _run_steps(trainer, steps)
    found: dict[str, list[list[float]]] = {name: [] for name in savers}
    for i in range(num_rounds + 1):
        for name in savers if i % 2 == 0 else reversed(savers):
            _wait(world)
            started_s = time.perf_counter()
            savers[name]()
            held_s = time.perf_counter() - started_s
            steps_s = _run_steps(trainer, steps)
            trainer.checkpoints.finish()
            if i:  # the first save of each also opens what it needs
                found[name].append([held_s, steps_s])
    return found


def _run_steps(trainer: Trainer, steps: Iterator[Step]) -> float:
    started_s = time.perf_counter()
    for i in range(NUM_STEPS_AFTER):
        trainer.stepper.run(next(steps), i, False)
        trainer.checkpoints.poll()
    return time.perf_counter() - started_s


def _torch_save(trainer: Trainer, world: World, path: Path) -> None:
    if world.is_first:
        content = {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.state.optimizer.state_dict(),
        }
        torch.save(content, path)
    _wait(world)


def _distributed_save(trainer: Trainer, world: World, folder: Path) -> None:
    dcp.save(trainer.state.capture(), checkpoint_id=folder, no_dist=world.mesh is None)


def _wait(world: World) -> None:
    if world.mesh is not None:
        dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
