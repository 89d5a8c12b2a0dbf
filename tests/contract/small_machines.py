"""Small machines of any levels, for the contract and the laws of networks."""

from collections.abc import Mapping, Sequence
from typing import Any

from armillary.spec.machine import CollectiveFit, Device, Efficiency, Level, Machine

EFFICIENCY = Efficiency(
    matmul_start_s=4e-6,
    matmul_fraction=0.8,
    matmul_memory_fraction=0.8,
    half_rows=50.0,
    half_columns=50.0,
    half_inner=100.0,
    attention_fraction=0.5,
    stream_fraction=0.8,
    launch_s=5e-6,
    source="made up",
    relative_error=0.1,
)


def level(name: str, num_ranks: int, network: str, rate: float, **more: Any) -> Level:
    """A level whose smallest message takes 1 us."""
    return Level(
        name=name,
        num_ranks=num_ranks,
        network=network,
        link_bytes_per_s=rate,
        **({"latency_s": 1e-6} | more),
    )


def machine(levels: Sequence[Level], ranks_per_node: int, backend: str = "nccl") -> Machine:
    """A machine of `levels` whose devices nobody made."""
    device = Device(
        name="made up",
        vendor="nvidia",
        torch_device="cuda",
        backend=backend,
        peak_flops_per_s={"bfloat16": 1e15},
        memory_bytes=10**11,
        memory_bytes_per_s=3e12,
        efficiency=EFFICIENCY,
    )
    return Machine(
        name="small",
        num_nodes=levels[-1].num_ranks // ranks_per_node,
        ranks_per_node=ranks_per_node,
        device=device,
        levels=tuple(levels),
    )


def pods(rate: float = 5e10, inside: float = 4.5e11, **between: Any) -> Machine:
    """64 nodes of 8 ranks behind a switch, on a fat tree."""
    between = {"network": "fat_tree"} | between
    levels = [
        level("node", 8, "switch", inside, latency_s=6e-7),
        level("machine", 512, rate=rate, **between),
    ]
    return machine(levels, 8)


def alps() -> Machine:
    """Four GH200 a node, all linked, an adapter of 25 GB/s each, on Slingshot."""
    shape: Mapping[str, float] = {"pair_bytes_per_s": 1.5e11}
    node = level("node", 4, "mesh", 4.5e11, latency_s=6e-7, shape=shape)
    return machine([node, level("machine", 10752, "dragonfly", 2.5e10, latency_s=2e-6)], 4)


def fitted(fits: Mapping[str, Sequence[CollectiveFit]], rate: float = 4.5e11) -> Machine:
    """8 ranks behind a switch whose collectives were measured."""
    collectives = {name: tuple(some) for name, some in fits.items()}
    node = level("node", 8, "switch", rate, collectives=collectives)
    return machine([node], 8)
