"""A training run as one rank of a job on warm ranks."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from armillary.verify.ranks import Ranks, RanksFailed

__all__ = ["Ranks", "RanksFailed", "train_as_rank"]


def train_as_rank(request: Any, runs: Path, stop_after: int = 0) -> tuple[Path, int]:
    """Train as one rank; the run's folder and exit code.

    The last rank alone is told to stop, by a signal, once it has done `stop_after` steps.
    """
    from armillary.train import loop, rank

    count = loop.Trainer._count
    if stop_after:

        def count_and_signal(trainer: Any, *args: Any) -> None:
            count(trainer, *args)
            is_last_rank = trainer.world.rank == trainer.world.num_ranks - 1
            if is_last_rank and trainer.counters.step == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        loop.Trainer._count = count_and_signal  # type: ignore[method-assign]
    try:
        outcome = rank.train_rank(replace(request, runs=runs, quiet=True))
    finally:
        loop.Trainer._count = count  # type: ignore[method-assign]
    return outcome.run_path, outcome.exit_code
