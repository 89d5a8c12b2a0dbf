"""One of two ranks that time collectives of gloo over the link between their namespaces.

python shaped_rank.py RANK ADDRESS SIZE ...: prints the least seconds of each, as JSON, by size.
"""

import json
import os
import sys
import time

import torch
from torch import distributed


def seconds(values: torch.Tensor, num_times: int) -> float:
    """The least of the times that the slower of the two ranks took."""
    times = []
    for _ in range(num_times):
        distributed.barrier()
        start = time.perf_counter()
        distributed.all_reduce(values)
        taken = torch.tensor([time.perf_counter() - start])
        distributed.all_reduce(taken, distributed.ReduceOp.MAX)
        times.append(float(taken))
    return min(times)


def main() -> None:
    rank, address, sizes = int(sys.argv[1]), sys.argv[2], [int(one) for one in sys.argv[3:]]
    os.environ |= {"GLOO_SOCKET_IFNAME": "shaped0"}
    distributed.init_process_group(
        "gloo", init_method=f"tcp://{address}:29551", rank=rank, world_size=2
    )
    found = {}
    for size in sizes:
        seconds(torch.ones(size // 4), 1)
        found[size] = seconds(torch.ones(size // 4), 7 if size < 2**20 else 4)
    if rank == 0:
        print(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
