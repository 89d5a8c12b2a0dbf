"""Would an MPI carry the gradients of processors faster than gloo? Sums over all ranks, in turn.

Both on the same float32 tensors: `dist.all_reduce` by gloo, and `Allreduce` in place by mpi4py on
NumPy views of them. Then a step of an LSTM, its gradients summed as one tensor by either, and by
neither. Times are those of the slowest rank, medians with 95 % intervals over repetitions; the two
take turns within each. Rank 0 prints the table.

Run: `mpiexec -n 2 python -m benchmarks.mpi_against_gloo` with mpi4py and an MPI installed.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from armillary.core.medians import median_of
from armillary.spec import Layout
from armillary.step.world import join
from armillary.train.launchers import find_here
from armillary.train.start.rendezvous import seat_of, serving

SIZES_BYTES = (8, 2**12, 2**16, 2**20, 2**23, 2**25)
NUM_REPEATS = 40
LARGE_BYTES, NUM_LARGE = 2**22, 15
HIDDEN, NUM_LAYERS, NUM_STEPS, NUM_SAMPLES = 256, 2, 32, 16


def slowest_s(work: Callable[[], object]) -> float:
    """Seconds until the slowest rank has done `work`, begun by all together."""
    dist.barrier()
    start_s = time.perf_counter()
    work()
    taken = torch.tensor([time.perf_counter() - start_s], dtype=torch.float64)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    return float(taken)


def in_turn(works: dict[str, Callable[[], object]], num_repeats: int) -> dict[str, list[float]]:
    """Seconds of each repetition by contender; the first repetition warms up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for index in range(num_repeats + 1):
        for name in list(works) if index % 2 else reversed(works):
            seconds = slowest_s(works[name])
            if index:
                taken[name].append(seconds)
    return taken


def sums(values: torch.Tensor, world: Any) -> dict[str, Callable[[], object]]:
    """A sum over all ranks of `values`, by either."""
    from mpi4py import MPI

    view = values.numpy()
    return {
        "gloo": lambda: dist.all_reduce(values),
        "MPI": lambda: world.Allreduce(MPI.IN_PLACE, view),
    }


def steps(world: Any) -> dict[str, Callable[[], object]]:
    """A step of an LSTM whose gradients are summed by either, or by neither."""
    torch.manual_seed(0)
    model = torch.nn.LSTM(HIDDEN, HIDDEN, NUM_LAYERS, batch_first=True)
    x_BTF = torch.randn(NUM_SAMPLES, NUM_STEPS, HIDDEN)
    flat = torch.zeros(sum(p.numel() for p in model.parameters()))

    def passed(add: Callable[[], object]) -> None:
        model.zero_grad()
        model(x_BTF)[0].square().mean().backward()
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None], out=flat)
        add()

    by = sums(flat, world) | {"neither": lambda: None}
    return {name: lambda add=add: passed(add) for name, add in by.items()}


def row(name: str, taken: dict[str, list[float]]) -> str:
    """A row of the table: microseconds by either, and gloo's over MPI's."""
    told = []
    for times in taken.values():
        one = median_of([1e6 * seconds for seconds in times])
        told.append(f"{one.value:,.0f} [{one.low:,.0f}, {one.high:,.0f}]")
    ratio = median_of([a / b for a, b in zip(taken["gloo"], taken["MPI"], strict=True)])
    told.append(f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
    return f"| {name} | {' | '.join(told)} |"


def main() -> None:
    """Measure, and print."""
    from mpi4py import MPI

    place = find_here()
    assert place is not None, "start it with mpiexec"
    with serving(place), join(Layout(degrees={"data": place.world_size}), "cpu", seat_of(place)):
        lines = [f"{MPI.Get_library_version().splitlines()[0]}, {place.world_size} ranks, us"]
        lines.append("| sum of | gloo | MPI | gloo / MPI |")
        for size in SIZES_BYTES:
            values = torch.zeros(max(size // 4, 1))
            num_repeats = NUM_LARGE if size > LARGE_BYTES else NUM_REPEATS
            lines.append(row(f"{size:,} B", in_turn(sums(values, MPI.COMM_WORLD), num_repeats)))
        lines.append("| a step | gloo | MPI | neither | gloo / MPI |")
        lines.append(row("LSTM", in_turn(steps(MPI.COMM_WORLD), NUM_REPEATS)))
        if place.rank == 0:
            print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
