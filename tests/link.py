"""Two nodes of this computer, as network namespaces, with one link between them that is told how
fast and how late it is, and when it is cut.

Each namespace gets a TUN device. A process carries the packets from one to the other, as late and
as slowly as it is told, and drops them all while the link is cut: TCP sees what it sees when a
cable is pulled. It needs root and /dev/net/tun, and no queueing discipline of the kernel.

    python -m tests.link NAMESPACE ADDRESS NAMESPACE ADDRESS LATENCY_S BYTES_PER_S

is that process: it says "ready", takes the words `cut` and `heal` from its standard input, answers
each with the number of packets dropped so far, and ends when its input does.
"""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DEVICE = "shaped0"
ADDRESSES = ("10.231.7.1", "10.231.7.2")
MTU = 9000
TUNSETIFF, TUN_WITHOUT_HEADER = 0x400454CA, 0x1001
CLONE_NEWNET = 0x40000000
UNSHAPED = 1e12


class NotHere(Exception):
    """This computer lets us make no such nodes; the message says why."""


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """The nodes, their link, and how to be on one of them."""

    names: tuple[str, str]
    link: "subprocess.Popen[str]"

    def inside(self, node: int) -> list[str]:
        """Words that have a command run on a node."""
        return ["ip", "netns", "exec", self.names[node]]

    def variables(self, node: int) -> dict[str, str]:
        """What a rank on a node is to have in its environment."""
        return {"GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def cut(self) -> int:
        """Drop every packet from now on; how many were dropped before."""
        return self._tell("cut")

    def heal(self) -> int:
        """Carry packets again; how many were dropped."""
        return self._tell("heal")

    def _tell(self, word: str) -> int:
        assert self.link.stdin is not None and self.link.stdout is not None
        self.link.stdin.write(f"{word}\n")
        self.link.stdin.flush()
        return int(self.link.stdout.readline())


@contextmanager
def two_nodes(*, latency_s: float = 0.0, bytes_per_s: float = UNSHAPED) -> Iterator[TwoNodes]:
    """Two nodes with a link of `latency_s` one way and `bytes_per_s` each way between them.

    Raises: `NotHere` if they cannot be made.
    """
    names = (f"armillary{os.getpid()}a", f"armillary{os.getpid()}b")
    link: subprocess.Popen[str] | None = None
    try:
        if not Path("/dev/net/tun").exists():
            raise NotHere("no /dev/net/tun")
        for name in names:
            _run("ip", "netns", "add", name)
        ends = [word for pair in zip(names, ADDRESSES, strict=True) for word in pair]
        link = subprocess.Popen(
            [sys.executable, __file__, *ends, str(latency_s), str(bytes_per_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert link.stdout is not None
        if link.stdout.readline().strip() != "ready":
            raise NotHere("no TUN devices in network namespaces")
        yield TwoNodes(names, link)
    finally:
        if link is not None:
            link.kill()
            link.communicate()
        for name in names:
            with suppress(NotHere):
                _run("ip", "netns", "del", name)


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError as error:
        raise NotHere(f"no command {words[0]}") from error
    if done.returncode:
        raise NotHere(f"{' '.join(words)}: {done.stderr.strip()}")


# ------------------------------------------------------------------------------ the link's process
def _device_in(namespace: str, address: str) -> int:
    """A TUN device in `namespace`, with its address, open for packets."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH14x", DEVICE.encode(), TUN_WITHOUT_HEADER))
    for words in (
        f"addr add {address}/24 dev {DEVICE}",
        f"link set {DEVICE} mtu {MTU} txqueuelen 10000 up",
        "link set lo up",
    ):
        _run("ip", "-n", namespace, *words.split())
    return device


class _Way:
    """Packets from one device to the other: each leaves when the one before it is out."""

    def __init__(self, source: int, target: int, latency_s: float, bytes_per_s: float) -> None:
        self.source, self.target = source, target
        self.latency_s, self.bytes_per_s = latency_s, bytes_per_s
        self.free_at = 0.0
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.num_dropped = 0

    def take(self, now: float, *, is_cut: bool) -> None:
        """Read what has been sent."""
        while True:
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                return
            if is_cut:
                self.num_dropped += 1
                continue
            self.free_at = max(self.free_at, now) + len(packet) / self.bytes_per_s
            self.waiting.append((self.free_at + self.latency_s, packet))

    def give(self, now: float) -> None:
        """Hand over what has arrived by now."""
        while self.waiting and self.waiting[0][0] <= now:
            packet = self.waiting.popleft()[1]
            with suppress(BlockingIOError):  # the receiver's queue is full: TCP sends it again
                os.write(self.target, packet)

    def lose(self) -> None:
        """Drop what is under way."""
        self.num_dropped += len(self.waiting)
        self.waiting.clear()

    def wait_s(self, now: float) -> float | None:
        """Seconds until the next packet arrives; None if there is none."""
        return max(self.waiting[0][0] - now, 0.0) if self.waiting else None


def _carry(ways: Sequence[_Way]) -> None:
    """Carry packets until the standard input ends."""
    is_cut, words = False, sys.stdin.fileno()
    sources = [way.source for way in ways]
    while True:
        now = time.perf_counter()
        waits = [wait for way in ways if (wait := way.wait_s(now)) is not None]
        ready, _, _ = select.select([*sources, words], [], [], min(waits, default=None))
        now = time.perf_counter()
        for way in ways:
            way.take(now, is_cut=is_cut)
            way.give(time.perf_counter())
        if words in ready:
            told = os.read(words, 64).decode().split()
            if not told:
                return
            is_cut = told[-1] == "cut"
            for way in ways:
                way.lose() if is_cut else None
            print(sum(way.num_dropped for way in ways), flush=True)


def main() -> None:
    first, second = _device_in(*sys.argv[1:3]), _device_in(*sys.argv[3:5])
    latency_s, bytes_per_s = map(float, sys.argv[5:7])
    with suppress(OSError):  # a link is never late because the computer is busy
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    print("ready", flush=True)
    _carry(
        [_Way(first, second, latency_s, bytes_per_s), _Way(second, first, latency_s, bytes_per_s)]
    )


if __name__ == "__main__":
    main()
