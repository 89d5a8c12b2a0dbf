"""`armillary.parallelize` in a loop of one's own gives what the loop gave before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

import armillary
from tests.parity import own_loop
from tests.parity.ranks import Ranks
from tests.parity.runs import distance

TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def serial() -> dict[str, torch.Tensor]:
    return own_loop.train(None)


@pytest.mark.parametrize("layout", ["data=1", "data=2", "sharded=2", "data=3"])
def test_a_loop_made_parallel_gives_the_serial_parameters(
    ranks: Ranks, serial: dict[str, torch.Tensor], layout: str
) -> None:
    """3 samples are left for the last batch: 2 and 1 of them on two ranks."""
    num_ranks = int(layout[-1])
    for found in ranks.run(num_ranks, own_loop.train_once, layout, False):
        assert distance(found, serial) <= TOLERANCE


def test_a_shuffled_loader_keeps_its_order_on_any_number_of_ranks(ranks: Ranks) -> None:
    [alone] = ranks.run(1, own_loop.train_once, "data=1", True)
    assert distance(ranks.run(2, own_loop.train_once, "data=2", True)[0], alone) <= TOLERANCE


@pytest.mark.slow
def test_torchrun_starts_the_ranks(tmp_path: Path, serial: dict[str, torch.Tensor]) -> None:
    """Four ranks: for the 3 samples of the last batch one of them has none."""
    layouts = ["data=4", "sharded=4", "data=2,sharded=2"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "4",
            "--master-port",
            "0",
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "localhost:0",
            "--local-addr",
            "localhost",
            own_loop.__file__,
            str(tmp_path / "out.pt"),
            *layouts,
        ],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "out.pt")
    assert list(found) == layouts
    for parameters in found.values():
        assert distance(parameters, serial) <= TOLERANCE


def _loop_parts(**loader_words: object) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader]:
    model = nn.Linear(2, 1)
    data = [torch.randn(2) for _ in range(6)]
    return model, torch.optim.SGD(model.parameters()), DataLoader(data, **loader_words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "loader_words", "where"),
    [
        ("data=2", {"batch_size": 2}, "layout"),
        ("diagonal=1", {"batch_size": 2}, "layout.diagonal"),
        ("precision=bfloat16", {"batch_size": 2}, "layout.precision"),
        ("micro_batch_size=2", {"batch_size": 2}, "layout.micro_batch_size"),
        ("data=1", {"batch_size": None}, "loader"),
        ("data=1", {"batch_size": 2, "drop_last": True}, "loader"),
        ("data=1", {"batch_size": 2, "sampler": WeightedRandomSampler([1.0] * 6, 6)}, "loader"),
    ],
)
def test_what_cannot_be_done_is_refused(
    layout: str, loader_words: dict[str, object], where: str
) -> None:
    with pytest.raises(armillary.SpecError) as refused:
        armillary.parallelize(*_loop_parts(**loader_words), layout)
    assert refused.value.where == where
