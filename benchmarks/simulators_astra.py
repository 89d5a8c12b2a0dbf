"""ASTRA-sim's analytical network: its inputs, written here, and what it says."""

import json
import math
import re
import tempfile
from pathlib import Path

from benchmarks.simulators_run import spent

BINARY = "AstraSim_Analytical_Congestion_Unaware"
KINDS = {
    "all_reduce": 0,
    "all_to_all_single": 6,
}  # numbers of its trace format, Chakra's et_def.proto
COMPUTE, COLLECTIVE = 4, 7
ONE_PIECE = (1, 1)
"""Pieces of a collective under way at a time, and in all. Pieces do not share a link there: with
two under way every collective takes half as long."""


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


def _node(number: int, name: str, kind: int, waits: tuple[int, ...], rest: bytes) -> bytes:
    """A node of a trace, after its length."""
    node = _varint(1 << 3) + _varint(number) + _text(2, name.encode())
    node += _varint(3 << 3) + _varint(kind)
    node += b"".join(_varint(5 << 3) + _varint(one) for one in waits)
    node += rest + _attribute(b"is_cpu_op", 27, 0)
    return _varint(len(node)) + node


def collective_node(number: int, collective: str, size: int, waits: tuple[int, ...]) -> bytes:
    """One collective of `size` bytes, which starts after the nodes that it `waits` for."""
    rest = _attribute(b"comm_type", 9, KINDS[collective]) + _attribute(b"comm_size", 9, size)
    return _node(number, collective, COLLECTIVE, waits, rest)


def compute_node(number: int, seconds: float, waits: tuple[int, ...]) -> bytes:
    """A pass of so many seconds; it is played in whole microseconds."""
    return _node(number, "pass", COMPUTE, waits, _varint(7 << 3) + _varint(round(seconds * 1e6)))


def astra(
    peers: Path,
    collective: str,
    num_ranks: int,
    size: int,
    link_gb_per_s: tuple[float, ...],
    latency_ns: float,
    pieces: tuple[int, int] = ONE_PIECE,
) -> tuple[float, float, float] | None:
    """Predicted seconds, run seconds and bytes of memory over nodes of 8; none without ASTRA-sim.

    One network level for each of `link_gb_per_s`: a ring inside a node, halving and doubling
    between nodes; an all-to-all is direct in both.
    """
    is_flat = len(link_gb_per_s) == 1
    counts = [num_ranks] if is_flat else [8, num_ranks // 8]
    forms = ["ring"] if is_flat else ["ring", "halvingDoubling"]
    nodes = collective_node(0, collective, size, ())
    return play(peers, nodes, counts, forms, link_gb_per_s, latency_ns, pieces)


def play(
    peers: Path,
    nodes: bytes,
    counts: list[int],
    forms: list[str],
    link_gb_per_s: tuple[float, ...],
    latency_ns: float,
    pieces: tuple[int, int] = ONE_PIECE,
) -> tuple[float, float, float] | None:
    """The same of any `nodes`, all ranks alike, over levels of `counts` units behind switches."""
    binary = peers / "bin" / BINARY
    if not binary.exists():
        return None
    num_ranks = math.prod(counts)
    head = _text(1, b"0.0.4")
    trace = _varint(len(head)) + head + nodes
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
            "active-chunks-per-dimension": pieces[0],
            "preferred-dataset-splits": pieces[1],
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
            (folder / f"one.{rank}.et").write_bytes(trace)
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
