"""One collective in ASTRA-sim's analytical network: its inputs, written here, and what it says."""

import json
import re
import tempfile
from pathlib import Path

from benchmarks.simulators_run import spent

BINARY = "AstraSim_Analytical_Congestion_Unaware"
KINDS = {
    "all_reduce": 0,
    "all_to_all_single": 6,
}  # numbers of its trace format, Chakra's et_def.proto
COLLECTIVE = 7


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _text(field: int, text: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(text)) + text


def _attribute(name: bytes, field: int, value: int) -> bytes:
    return _text(10, _text(1, name) + _varint(field << 3) + _varint(value))


def trace(collective: str, size: int) -> bytes:
    """A trace of one collective of `size` bytes."""
    node = _text(2, collective.encode()) + _varint(3 << 3) + _varint(COLLECTIVE)
    node += _attribute(b"is_cpu_op", 27, 0)
    node += _attribute(b"comm_type", 9, KINDS[collective]) + _attribute(b"comm_size", 9, size)
    head = _text(1, b"0.0.4")
    return _varint(len(head)) + head + _varint(len(node)) + node


def astra(
    peers: Path,
    collective: str,
    num_ranks: int,
    size: int,
    link_gb_per_s: tuple[float, ...],
    latency_ns: float,
) -> tuple[float, float, float] | None:
    """Predicted seconds, run seconds and bytes of memory over nodes of 8; none without ASTRA-sim.

    One network level for each of `link_gb_per_s`: a ring inside a node, halving and doubling
    between nodes; an all-to-all is direct in both.
    """
    binary = peers / "bin" / BINARY
    if not binary.exists():
        return None
    is_flat = len(link_gb_per_s) == 1
    counts = [num_ranks] if is_flat else [8, num_ranks // 8]
    forms = ["ring"] if is_flat else ["ring", "halvingDoubling"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "network.yml").write_text(
            f"topology: {['Switch'] * len(counts)}\nnpus_count: {counts}\n"
            f"bandwidth: {list(link_gb_per_s)}\nlatency: {[latency_ns] * len(counts)}\n".replace(
                "'", ""
            )
        )
        system = {
            "scheduling-policy": "LIFO",
            "endpoint-delay": 10,
            "active-chunks-per-dimension": 2,
            "preferred-dataset-splits": 4,
            "all-reduce-implementation": forms,
            "all-gather-implementation": forms,
            "reduce-scatter-implementation": forms,
            "all-to-all-implementation": ["direct"] * len(counts),
            "collective-optimization": "localBWAware",
            "local-mem-bw": 3350,
            "boost-mode": 0,
        }
        (folder / "system.json").write_text(json.dumps(system))
        (folder / "memory.json").write_text('{"memory-type": "NO_MEMORY_EXPANSION"}')
        for rank in range(num_ranks):
            (folder / f"one.{rank}.et").write_bytes(trace(collective, size))
        text, run_s, memory = spent(
            [
                str(binary),
                f"--workload-configuration={folder / 'one'}",
                f"--system-configuration={folder / 'system.json'}",
                f"--remote-memory-configuration={folder / 'memory.json'}",
                f"--network-configuration={folder / 'network.yml'}",
            ],
            name,
        )
    cycles = [int(one) for one in re.findall(r"finished, (\d+) cycles", text)]
    return max(cycles) * 1e-9, run_s, memory
