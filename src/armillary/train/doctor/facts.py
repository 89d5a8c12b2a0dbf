"""What a rank knows of itself, for all to compare: where it is, its cores, device and addresses."""

import fcntl
import os
import platform
import re
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from armillary.train.launchers import Place

NETWORKS = Path("/sys/class/net")
SIOCGIFADDR = 0x8915
"""Source: Linux, include/uapi/linux/sockios.h."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """One rank: its place, the cores it may run on, its device, and its node's names and networks.

    `device` is a name that no other device of the node has. `interfaces` has the address and the
    rate in bytes/s of each network of the node that is up, 0 where the node does not tell.
    `clock_hz` is that of the processor or device, 0 where it does not tell.
    """

    rank: int
    node: str
    host: str
    local_rank: int
    local_world_size: int | None
    cores: tuple[int, ...]
    num_cores: int
    device: str
    device_name: str
    clock_hz: float
    interfaces: dict[str, tuple[str, float]]


def facts_of(place: Place, device: torch.device) -> Facts:
    """The facts of this process, which is at `place` and computes on `device`."""
    return Facts(
        rank=place.rank,
        node=place.node,
        host=platform.node(),
        local_rank=place.local_rank,
        local_world_size=place.local_world_size,
        cores=tuple(sorted(_cores())),
        num_cores=os.cpu_count() or 1,
        device=_identity(device),
        device_name=_device_name(device),
        clock_hz=_clock_hz(device),
        interfaces=interfaces(),
    )


def _cores() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _identity(device: torch.device) -> str:
    """The device as no other of its node is called; "" for processors, which ranks may share."""
    if device.type == "cpu":
        return ""
    if device.type in ("cuda", "xpu"):
        properties = getattr(torch, device.type).get_device_properties(device)
        found = getattr(properties, "uuid", None)
        if found is not None:
            return str(found)
    shown = [os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")]
    return f"{device} of {''.join(shown) or 'all'}"


def _device_name(device: torch.device) -> str:
    if device.type in ("cuda", "xpu"):
        return str(getattr(torch, device.type).get_device_name(device))
    return platform.machine() if device.type == "cpu" else device.type


def _clock_hz(device: torch.device) -> float:
    """The clock now, as the driver or Linux tells it."""
    if device.type == "cuda":
        try:
            return torch.cuda.clock_rate(device) * 1e6
        except (ModuleNotFoundError, RuntimeError):
            return 0.0  # it needs the driver's own library for Python
    if device.type != "cpu" or not Path("/proc/cpuinfo").is_file():
        return 0.0
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    found = [float(number) for number in re.findall(r"^cpu MHz\s*: ([\d.]+)", text, re.MULTILINE)]
    mine = [found[core] for core in _cores() if core < len(found)]
    return 1e6 * sum(mine) / len(mine) if mine else 0.0


def interfaces() -> dict[str, tuple[str, float]]:
    """{name: (IPv4 address, bytes/s)} of the networks that are up, loopback left out."""
    found = {}
    for _, name in socket.if_nameindex():
        address = _address(name)
        if address and not address.startswith("127."):
            found[name] = (address, _rate(name))
    return found


def _address(name: str) -> str:
    if sys.platform != "linux":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            packed = struct.pack("256s", name.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(asking.fileno(), SIOCGIFADDR, packed)[20:24])
        except OSError:
            return ""


def _rate(name: str) -> float:
    """Linux tells megabits a second, -1 of what has no rate."""
    try:
        text = (NETWORKS / name / "speed").read_text(encoding="ascii")
        return max(float(text), 0.0) * 1e6 / 8
    except (OSError, ValueError):
        return 0.0
