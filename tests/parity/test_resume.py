"""A run that was stopped goes on as if it had not been: bit for bit, or on another layout."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.parity.runs import Bench, Result, distance, largest_relative

INTERRUPTED = 75


def assert_bitwise(ours: Result, theirs: Result) -> None:
    assert ours.losses == theirs.losses
    mine, other = ours.parameters(), theirs.parameters()
    assert mine.keys() == other.keys()
    for name, tensor in other.items():
        assert torch.equal(mine[name], tensor), name


@pytest.mark.parametrize("layout", ["", "data=2,micro_batch_size=3", "sharded=2"])
def test_a_run_stopped_within_an_epoch_goes_on_bitwise(bench: Bench, layout: str) -> None:
    """With dropout, in float32: the random numbers too are those of the whole run."""
    whole = bench.train("mlp", layout, dropout=0.3)
    stopped = bench.train("mlp", layout, stop_after=5, dropout=0.3)
    assert (stopped.exit_code, len(stopped.losses)) == (INTERRUPTED, 6)
    resumed = bench.resume(stopped.path)
    assert resumed.exit_code == 0
    assert_bitwise(resumed, whole)
    assert [e["loss"] for e in resumed.evaluations] == [e["loss"] for e in whole.evaluations]


def test_a_longer_run_goes_on_bitwise(bench: Bench) -> None:
    """Stopped by its own length, which the person then changes."""
    whole = bench.train("mlp", "data=2", dropout=0.3)
    stopped = bench.train("mlp", "data=2", dropout=0.3, max_steps=6)
    resumed = bench.resume(stopped.path, max_steps=0)
    assert_bitwise(resumed, whole)


@pytest.mark.parametrize("case", ["augmented", "sequences"])
def test_noise_of_every_kind_goes_on_bitwise(bench: Bench, case: str) -> None:
    whole = bench.train(case, "data=2")
    stopped = bench.train(case, "data=2", stop_after=4)
    resumed = bench.resume(stopped.path)
    assert_bitwise(resumed, whole)
    assert [e["loss"] for e in resumed.evaluations] == [e["loss"] for e in whole.evaluations]


def test_a_stop_where_an_evaluation_was_due_misses_none(bench: Bench) -> None:
    """The stop falls on the end of an epoch: the resumed run evaluates first."""
    whole = bench.train("mlp", "")
    stopped = bench.train("mlp", "", stop_after=3)
    assert stopped.evaluations == []
    resumed = bench.resume(stopped.path)
    steps = [(e["split"], e["step"], e["loss"]) for e in resumed.evaluations]
    assert steps == [(e["split"], e["step"], e["loss"]) for e in whole.evaluations]


@pytest.mark.parametrize(
    ("case", "before", "after"),
    [
        ("mlp", "data=2", "sharded=4"),
        ("mlp", "sharded=4", "data=2"),
        ("blocks", "data=2,sharded=2", "data=2"),
        ("blocks", "", "sharded=2,micro_batch_size=3"),
        ("sequences", "data=2", ""),
    ],
)
def test_a_run_goes_on_on_another_layout(bench: Bench, case: str, before: str, after: str) -> None:
    whole = bench.train(case, "precision=float64")
    stopped = bench.train(case, f"{before},precision=float64", stop_after=1)
    assert len(stopped.losses) == 2
    resumed = bench.resume(stopped.path, f"{after},precision=float64")
    assert largest_relative(resumed.losses, whole.losses) <= 1e-10
    assert distance(resumed.parameters(), whole.parameters()) <= 1e-10
    assert resumed.column("learning_rate") == whole.column("learning_rate")


def test_an_epoch_begun_on_4_ranks_and_ended_on_2_sees_every_sample_once(
    bench: Bench, tmp_path: Path
) -> None:
    stopped = bench.train("counted", "data=4", stop_after=5, log=tmp_path)
    assert sum(stopped.column("samples")) == 384
    assert sum(Counter(_read(tmp_path)).values()) == 384
    bench.resume(stopped.path, "data=2")
    assert Counter(_read(tmp_path)) == Counter(range(640))


def test_what_a_stateful_loader_repeats(tmp_path: Path) -> None:
    """The same stop and resume with the states that torchdata's loaders save, rank by rank.

    A state counts batches of a rank, which mean something else in another world. This is why a
    feed's state counts samples of the epoch.
    """
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    from torch.utils.data.distributed import DistributedSampler

    def loader(rank: int, num_ranks: int):  # type: ignore[no-untyped-def]
        sampler = DistributedSampler(range(640), num_ranks, rank, seed=0)
        return loaders.StatefulDataLoader(range(640), batch_size=16, sampler=sampler)

    seen: list[int] = []
    states = []
    for rank in range(4):
        four = loader(rank, 4)
        batches = iter(four)
        for _ in range(6):
            seen += next(batches).tolist()
        states.append(four.state_dict())
    assert len(seen) == 384
    for rank in range(2):
        two = loader(rank, 2)
        two.load_state_dict(states[rank])
        for batch in two:
            seen += batch.tolist()
    assert len(seen) - len(set(seen)) == 192


def _read(folder: Path) -> list[int]:
    """The indices that all processes have read."""
    return [int(line) for path in folder.iterdir() for line in path.read_text().split()]
