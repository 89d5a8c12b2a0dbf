"""Does a real all-reduce over a link of known rate and latency take what is predicted for it?

Two network namespaces of this machine with a link of our own between them (`shaped_link.py`), a
rank of gloo in each. Needs root and /dev/net/tun.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from armillary import networks
from armillary.networks import Burst, contended_seconds
from tests.contract import small_machines as small

HERE = Path(__file__).parent
LATENCY_S, BYTES_PER_S = 0.004, 12.5e6
SIZES = (8, 65536, 1 << 20, 1 << 22)
ADDRESSES = ("10.231.7.1", "10.231.7.2")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=20)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two namespaces with the link between them."""
    names = (f"shapedA{os.getpid()}", f"shapedB{os.getpid()}")
    made = (
        [run("ip", "netns", "add", name) for name in names] if Path("/dev/net/tun").exists() else []
    )
    link = None
    try:
        if not made or any(one.returncode for one in made):
            pytest.skip("needs network namespaces: root, ip and /dev/net/tun")
        ends = [word for pair in zip(names, ADDRESSES, strict=True) for word in pair]
        link = subprocess.Popen(
            [sys.executable, str(HERE / "shaped_link.py"), *ends, str(LATENCY_S), str(BYTES_PER_S)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert link.stdout is not None
        if link.stdout.readline().strip() != "ready":
            pytest.skip("needs TUN devices in network namespaces")
        time.sleep(0.2)
        yield names
    finally:
        if link is not None:
            link.kill()
            link.wait()
        for name in names:
            run("ip", "netns", "del", name)


def measured_s(namespaces: tuple[str, str]) -> dict[int, float]:
    """The least seconds of an all-reduce of each of `SIZES`."""
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, str(HERE / "shaped_rank.py"), str(rank)]
            + [ADDRESSES[0], *map(str, SIZES)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, name in enumerate(namespaces)
    ]
    try:
        text, _ = ranks[0].communicate(timeout=100)
    finally:
        for one in ranks:
            with suppress(subprocess.TimeoutExpired):
                one.wait(5)
            one.kill()
    return {int(size): float(taken) for size, taken in json.loads(text).items()}


@pytest.mark.slow
def test_a_real_all_reduce_takes_what_is_predicted(namespaces: tuple[str, str]) -> None:
    level = small.level(
        "machine", 2, "fat_tree", BYTES_PER_S, latency_s=LATENCY_S, shape={"fraction": 1.0}
    )
    machine = small.machine([level], 1, "gloo")
    measured = measured_s(namespaces)
    for size, taken in measured.items():
        burst = Burst(collective="all_reduce", bytes=float(size), spans=((2, 1),))
        predicted = float(contended_seconds(machine, [burst]).seconds[0])
        closed = float(networks.seconds(machine, "all_reduce", size, [(2, 1)]))
        assert predicted == pytest.approx(closed, rel=0.01)
        assert predicted == pytest.approx(taken, rel=0.15), (size, predicted, measured)
