"""A link between two nodes is cut, every packet is lost, and it heals: what becomes of a run?"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fault.door import TROUBLE, finish, only_run, result, steps_done, wait_for
from tests.link import ADDRESSES, NotHere, TwoNodes, two_nodes
from tests.parity.runs import Bench

pytestmark = pytest.mark.slow
AGAIN_S = 120.0
WORDS = ("train", TROUBLE, "--layout", "data=2", "--set", "pause_s=0.2")
WORDS += ("--set", "checkpoint_every_steps=4")
HANGS = ("--set", "hang_steps=10", "--set", "hang_least_s=3")


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    """Two nodes with a link that is as fast as it can be."""
    with contextlib.ExitStack() as until_the_end:
        try:
            found = until_the_end.enter_context(two_nodes())
        except NotHere as why:
            pytest.skip(f"needs two network namespaces and root: {why}")
        yield found


def start(nodes: TwoNodes, node: int, words: list[str], **variables: str) -> subprocess.Popen[str]:
    """Python, begun on a node with `words`."""
    return subprocess.Popen(
        [*nodes.inside(node), sys.executable, *words],
        env=os.environ | nodes.variables(node) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def ending(processes: list[subprocess.Popen[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """`processes`, none of which is left at the end."""
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def assert_undisturbed(runs: Path, bench: Bench) -> None:
    """The run in `runs` ends with the bits of one that was left alone."""
    ours, whole = result(runs), bench.train(TROUBLE, "data=2")
    assert ours.losses == whole.losses
    tensors = ours.parameters()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in whole.parameters().items())


def test_a_short_cut_changes_nothing(bench: Bench, tmp_path: Path, nodes: TwoNodes) -> None:
    """Three seconds: TCP sends again what was lost, the ranks wait for each other, and go on."""
    words = ["-m", "armillary.cli", *WORDS, "--runs", str(tmp_path)]
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29441"}
    with ending([start(nodes, i, words, RANK=str(i), **place) for i in range(2)]) as ranks:
        wait_for(lambda: steps_done(tmp_path) >= 4, ranks[0])
        before = nodes.cut()
        time.sleep(0.5)
        done = steps_done(tmp_path)
        time.sleep(2.5)
        assert steps_done(tmp_path) <= done + 4, "nothing passes a link that is cut"
        assert nodes.heal() > before, "packets were lost"
        assert [finish(process, AGAIN_S)[0] for process in ranks] == [0, 0]
    assert only_run(tmp_path)
    assert not result(tmp_path).events("resumed")
    assert_undisturbed(tmp_path, bench)


def test_a_long_cut_is_seen_and_the_run_starts_again(
    bench: Bench, tmp_path: Path, nodes: TwoNodes
) -> None:
    """Longer than the watch waits: every rank leaves its stack and ends, torchrun's agents on both
    nodes start them again once they hear each other, and the run goes on from its checkpoint.
    """

    def words(node: int) -> list[str]:
        conf = f"is_host={node == 0},last_call_timeout=2"
        launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29450"]
        launcher += ["--rdzv-id=cut", f"--rdzv-conf={conf}", f"--local-addr={ADDRESSES[node]}"]
        launcher += ["--max-restarts=3", "--monitor-interval=0.1"]
        return [*launcher, "-m", "armillary.cli", *WORDS, *HANGS, "--runs", str(tmp_path)]

    with ending([start(nodes, i, words(i)) for i in range(2)]) as agents:
        wait_for(lambda: steps_done(tmp_path) >= 4, agents[0])
        nodes.cut()
        wait_for(lambda: len([*tmp_path.glob("*/stacks/rank-*.json")]) == 2, agents[0])
        time.sleep(1.0)
        assert nodes.heal() > 0
        ended = [finish(process, AGAIN_S) for process in agents]
        assert [code for code, _ in ended] == [0, 0], ended
    assert len(result(tmp_path).events("resumed")) == 1
    assert_undisturbed(tmp_path, bench)
