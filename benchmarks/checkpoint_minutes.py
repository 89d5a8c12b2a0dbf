"""How long a checkpoint every minute holds training up: `python -m benchmarks.checkpoint_minutes`.

Two measures, of a GPT of 40 MB of state on one rank. *Held up* is the wall time for which no step
runs. *In all* adds the processor time that the writing, syncing and hashing take beside training,
as if no core and no device were free for it: the most that a checkpoint can cost. Both as shares
of a minute, medians over the checkpoints with the least and the most.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from armillary.step.batches import Step
from armillary.step.world import World, join
from armillary.train.loop import Trainer
from armillary.train.outfit import fit_out
from armillary.train.request import new_request
from armillary.train.survive.stop import StopWish
from benchmarks.cases import gpt

MINUTE_S = 60.0
GOAL = 0.02


def measure(num_checkpoints: int, num_steps: int) -> dict[str, list[float]]:
    """Seconds of each checkpoint: held up, processor time, and until it was whole."""
    found: dict[str, list[float]] = {"held_s": [], "processor_s": [], "whole_s": [], "bytes": []}
    assert gpt.__file__ is not None
    with tempfile.TemporaryDirectory() as own:
        request = new_request(gpt.__file__, runs=Path(own), assignments={"epochs": "1000"})
        request = replace(request, run_path=Path(own) / "run")
        with join(request.layout, "cpu") as world:
            trainer = _trainer(request, world)
            steps = trainer.feed.steps()
            for i in range(num_checkpoints + 1):
                _run(trainer, steps, num_steps)
                began_s = time.perf_counter()
                held_s = trainer.checkpoints.save(i, trainer.state.capture())
                held_s = max(held_s, time.perf_counter() - began_s)
                used_s = time.process_time()  # no step runs until it is whole
                trainer.checkpoints.finish()
                used_s = time.process_time() - used_s
                if i:  # the first also imports what it needs
                    size = sum(f.stat().st_size for f in Path(own).glob("run/checkpoints/*1/*"))
                    found["held_s"].append(held_s)
                    found["processor_s"].append(used_s)
                    found["whole_s"].append(time.perf_counter() - began_s)
                    found["bytes"].append(size)
    return found


def _trainer(request: object, world: World) -> Trainer:
    recipe = request.load_recipe()  # type: ignore[attr-defined]
    return Trainer(request, fit_out(request, recipe, world), StopWish())  # type: ignore[arg-type]


def _run(trainer: Trainer, steps: Iterator[Step], num_steps: int) -> None:
    for i in range(num_steps):
        trainer.stepper.run(next(steps), i, False)


def main() -> None:
    """Measure, print, and say whether it is below two hundredths."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint_minutes", description=__doc__
    )
    parser.add_argument("--checkpoints", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8, help="between two checkpoints")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    asked = parser.parse_args()
    found = measure(asked.checkpoints, asked.steps)
    both = [a + b for a, b in zip(found["held_s"], found["processor_s"], strict=True)]
    for name, seconds in (("held up", found["held_s"]), ("in all", both)):
        shares = sorted(second / MINUTE_S for second in seconds)
        middle = statistics.median(shares)
        print(
            f"{name}: {middle:.4%} of a minute ({shares[0]:.4%} to {shares[-1]:.4%}), "
            f"goal {GOAL:.0%}: {'met' if middle < GOAL else 'missed'}"
        )
    print(f"a checkpoint is whole after {statistics.median(found['whole_s']):.2f} s")
    print(f"{max(found['bytes']) / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}")
    if asked.out:
        asked.out.write_text(json.dumps(found | {"load": os.getloadavg()[0]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
