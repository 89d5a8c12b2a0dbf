"""A link between two network namespaces with a rate and a latency of its own.

python shaped_link.py NAMESPACE ADDRESS NAMESPACE ADDRESS LATENCY_S BYTES_PER_S

Each namespace gets a TUN device; this process carries the packets from one to the other, as late
and as slowly as it is told. It needs no queueing discipline of the kernel. It says "ready" and runs
until it is killed.
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

TUNSETIFF, TUN_WITHOUT_HEADER = 0x400454CA, 0x1001
CLONE_NEWNET = 0x40000000
MTU = 9000


def device_in(namespace: str, address: str) -> int:
    """A TUN device in `namespace`, with its address, open for packets."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH14x", b"shaped0", TUN_WITHOUT_HEADER))
    for words in (
        f"addr add {address}/24 dev shaped0",
        f"link set shaped0 mtu {MTU} txqueuelen 10000 up",
        "link set lo up",
    ):
        subprocess.run(["ip", "-n", namespace, *words.split()], check=True)
    return device


class Direction:
    """Packets from one device to the other: each leaves when the one before it is out."""

    def __init__(self, source: int, target: int, latency_s: float, bytes_per_s: float) -> None:
        self.source, self.target = source, target
        self.latency_s, self.bytes_per_s = latency_s, bytes_per_s
        self.free_at = 0.0
        self.waiting: deque[tuple[float, bytes]] = deque()

    def take(self, now: float) -> None:
        """Read what has been sent."""
        while True:
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                return
            self.free_at = max(self.free_at, now) + len(packet) / self.bytes_per_s
            self.waiting.append((self.free_at + self.latency_s, packet))

    def give(self, now: float) -> None:
        """Hand over what has arrived by now."""
        while self.waiting and self.waiting[0][0] <= now:
            try:
                os.write(self.target, self.waiting.popleft()[1])
            except BlockingIOError:
                return  # the receiver's queue is full: TCP sends it again

    def next_at(self) -> float:
        """When the next packet arrives; never if there is none."""
        return self.waiting[0][0] if self.waiting else float("inf")


def main() -> None:
    first, second = device_in(*sys.argv[1:3]), device_in(*sys.argv[3:5])
    latency_s, bytes_per_s = map(float, sys.argv[5:7])
    ways = [
        Direction(first, second, latency_s, bytes_per_s),
        Direction(second, first, latency_s, bytes_per_s),
    ]
    poll = select.epoll()
    poll.register(first, select.EPOLLIN)
    poll.register(second, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        wait_s = min(way.next_at() for way in ways) - time.perf_counter()
        # The kernel wakes this process to a millisecond; shorter waits are spent polling.
        poll.poll(None if wait_s == float("inf") else 0 if wait_s < 0.002 else wait_s - 0.001)
        now = time.perf_counter()
        for way in ways:
            way.take(now)
            way.give(time.perf_counter())


if __name__ == "__main__":
    main()
