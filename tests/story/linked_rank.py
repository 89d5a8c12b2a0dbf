"""One of two ranks that time collectives of gloo over the link between their nodes.

python linked_rank.py RANK ADDRESS COLLECTIVE:BYTES ...

prints, on rank 0, the least seconds of each as JSON; the bytes are those of the whole tensor.
"""

import json
import sys
import time
from collections.abc import Callable

import torch
from torch import distributed

TIMES = 8


def calls(whole: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The collectives on a tensor, by torch's names."""
    part = whole.chunk(2)[0].clone()
    return {
        "all_reduce": lambda: distributed.all_reduce(whole),
        "reduce_scatter_tensor": lambda: distributed.reduce_scatter_tensor(part, whole),
        "broadcast": lambda: distributed.broadcast(whole, 0),
    }


def seconds(call: Callable[[], object]) -> float:
    """The least of the times that the slower of the two ranks took."""
    times = []
    for _ in range(1 + TIMES):
        distributed.barrier()
        start = time.perf_counter()
        call()
        # Of four numbers each rank has a part, so that neither is done before the other.
        taken = torch.full((4,), time.perf_counter() - start)
        distributed.all_reduce(taken, distributed.ReduceOp.MAX)
        times.append(float(taken[0]))
    return min(times[1:])


def main() -> None:
    rank, address, *asked = sys.argv[1:]
    distributed.init_process_group(
        "gloo", init_method=f"tcp://{address}:29551", rank=int(rank), world_size=2
    )
    found = {}
    for one in asked:
        name, size = one.split(":")
        found[one] = seconds(calls(torch.ones(int(size) // 4))[name])
    if rank == "0":
        print(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
