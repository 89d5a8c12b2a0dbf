"""One rank of one contender: `python -m benchmarks.loop_rank NAME CASE LAYOUT STEPS RUNS`."""

import importlib
import sys
from pathlib import Path

import torch.distributed as dist

from armillary.spec import Layout
from benchmarks.contenders import CONTENDERS, Race
from benchmarks.turns import Turn


def main(name: str, case: str, layout: str, num_steps: int, runs: Path) -> None:
    """Run contender `name` as this rank, turn by turn."""
    turn = Turn()
    race = Race(
        case=importlib.import_module(f"benchmarks.cases.{case}"),
        layout=Layout.parse(layout),
        num_steps=num_steps,
        runs=runs,
    )
    losses = CONTENDERS[name](race, turn)
    turn.end({"losses": losses})
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    name_word, case_word, layout_word, steps_word, runs_word = sys.argv[1:]
    main(name_word, case_word, layout_word, int(steps_word), Path(runs_word))
