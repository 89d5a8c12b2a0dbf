"""Ranks that torchrun starts again, on as many as are left."""

import os
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.fault.door import TROUBLE, finish, result, start, steps_done, wait_for
from tests.parity.runs import Bench, Result

pytestmark = pytest.mark.slow
AGAIN_S = 120.0
WORDS = ("train", TROUBLE, "--layout", "data=2", "--set", "pause_s=0.15")


def assert_every_sample_once(ours: Result, epochs: int = 3, num_samples: int = 64) -> None:
    """The steps that count tile every epoch."""
    seen = Counter(
        (line["epoch"], position)
        for line in ours.lines
        if line["kind"] == "step"
        for position in range(line["position"] - line["samples"], line["position"])
    )
    assert seen == Counter((e, p) for e in range(epochs) for p in range(num_samples))


def _ranks_of(agent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(agent)], capture_output=True, text=True)
    return sorted(map(int, found.stdout.split()))


def test_torchrun_starts_a_lost_rank_again(bench: Bench, tmp_path: Path) -> None:
    """With the words of a new run; it goes on with the run of the first start."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    launcher += ("--max-restarts=2", "--monitor-interval=0.1")
    process = start(*WORDS, "--runs", str(tmp_path), launcher=launcher)
    wait_for(lambda: steps_done(tmp_path) >= 4, process)
    os.kill(_ranks_of(process.pid)[0], signal.SIGKILL)
    exit_code, said = finish(process, AGAIN_S)
    assert exit_code == 0, said
    assert len(result(tmp_path).events("resumed")) == 1
    whole = bench.train(TROUBLE, "data=2")
    assert result(tmp_path).losses == whole.losses
    ours = result(tmp_path).parameters()
    assert all(torch.equal(ours[name], tensor) for name, tensor in whole.parameters().items())


def test_a_lost_node_leaves_fewer_ranks_which_go_on(bench: Bench, tmp_path: Path) -> None:
    """Two agents of one rank each; one is killed with its rank, and the other goes on alone."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1")
    launcher += ("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=lost")
    launcher += ("--max-restarts=3", "--monitor-interval=0.1", "--local-addr=127.0.0.1")
    conf = "--rdzv-conf=last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=2,is_host="
    words = (*WORDS, "--set", "dropout=0", "--runs", str(tmp_path))
    first = start(*words, launcher=(*launcher, f"{conf}true"))
    second = start(*words, launcher=(*launcher, f"{conf}false"))
    wait_for(lambda: steps_done(tmp_path) >= 4, first)
    os.killpg(second.pid, signal.SIGKILL)
    exit_code, said = finish(first, AGAIN_S)
    finish(second)
    assert exit_code == 0, said
    assert "serial on 1 ranks, instead of data=2" in said
    ours = result(tmp_path)
    assert "on serial" in ours.events("resumed")[0]
    assert_every_sample_once(ours)
    whole = bench.train(TROUBLE, "data=2", dropout=0)
    assert ours.losses == pytest.approx(whole.losses, rel=1e-4)
