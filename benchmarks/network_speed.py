"""How many rows a second `networks.seconds` prices on one core, by machine and collective.

OMP_NUM_THREADS=1 python -m benchmarks.network_speed
"""

import time

import numpy as np

from armillary import machines, networks

NUM_ROWS = 100_000
NUM_TIMES = 5
MACHINES = ("dgx_h100", "alps", "frontier", "aurora")
COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "all_to_all_single", "send")


def rows_per_s(machine: str, collective: str) -> float:
    """The best of some runs over random groups, of which a fifth are not powers of two."""
    random = np.random.default_rng(0)
    degree = 2 ** random.integers(0, 10, NUM_ROWS)
    degree[::5] = random.integers(1, 100, degree[::5].size)
    stride = 2 ** random.integers(0, 6, NUM_ROWS)
    size = 10 ** random.uniform(3, 10, NUM_ROWS)
    loaded = machines.load(machine)
    times = []
    for _ in range(NUM_TIMES):
        start = time.process_time()
        networks.seconds(loaded, collective, size, [(degree, stride)])
        times.append(time.process_time() - start)
    return NUM_ROWS / min(times)


def main() -> None:
    print(f"{'':12}" + "".join(f"{name:>24}" for name in COLLECTIVES) + "   million rows a second")
    for machine in MACHINES:
        rates = [rows_per_s(machine, collective) / 1e6 for collective in COLLECTIVES]
        print(f"{machine:12}" + "".join(f"{rate:24.1f}" for rate in rates))


if __name__ == "__main__":
    main()
