"""What ranks measure together: their devices, their clocks, and what they send each other.

Every repetition is timed by itself and kept; what belongs together is compared afterwards
(`findings`). All ranks call these functions in the same order.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

REPEATS = 30
"""At least; medians of fewer have wide intervals. Source: Hoefler & Belli, SC'15, rule 6."""
WARM_UPS = 3
EXCHANGES = 10
SMALL_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is computed and sent: enough to be at full rate, little enough to be soon done."""

    matmul_rows: int
    copied_bytes: int
    reduced_bytes: int
    sent_bytes: int
    dtype: torch.dtype


def sizes_for(device: torch.device) -> Sizes:
    """The sizes for a device: some milliseconds each on a core, less on an accelerator."""
    if device.type == "cpu":
        return Sizes(
            matmul_rows=256,
            copied_bytes=2**24,
            reduced_bytes=2**20,
            sent_bytes=2**22,
            dtype=torch.float32,
        )
    return Sizes(
        matmul_rows=4096,
        copied_bytes=2**28,
        reduced_bytes=2**27,
        sent_bytes=2**27,
        dtype=torch.bfloat16,
    )


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def repeated_s(
    work: Callable[[], object],
    device: torch.device,
    before: Callable[[], object] = lambda: None,
    num: int = REPEATS,
) -> list[float]:
    """Seconds of each of `num` calls of `work`, after some that are not counted."""
    found = []
    for _ in range(WARM_UPS + num):
        before()
        _wait(device)
        start_s = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - start_s)
    return found[WARM_UPS:]


def matmul_s(device: torch.device, sizes: Sizes) -> list[float]:
    """Seconds of square matrix products."""
    n = sizes.matmul_rows
    left_NN = torch.ones(n, n, device=device, dtype=sizes.dtype)
    out_NN = torch.empty_like(left_NN)
    return repeated_s(lambda: torch.matmul(left_NN, left_NN, out=out_NN), device)


def copy_s(device: torch.device, sizes: Sizes) -> list[float]:
    """Seconds of copies within the device's memory."""
    source = torch.ones(sizes.copied_bytes, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return repeated_s(lambda: target.copy_(source), device)


def alone_s(device: torch.device, sizes: Sizes) -> tuple[list[float], list[float]]:
    """Seconds of matrix products, and of copies, which no other rank waits for."""
    return matmul_s(device, sizes), copy_s(device, sizes)


def less_disturbed_s(rounds: Sequence[list[float]]) -> list[float]:
    """Of rounds at different times the one with the least median.

    A device that is slow is slow in all; a round in which something else ran beside it is not.
    """
    return min(rounds, key=statistics.median)


def all_reduce_s(
    device: torch.device, num_bytes: int, control: "dist.ProcessGroup | None"
) -> list[float]:
    """Seconds of sums over all ranks, each begun together."""
    values = torch.zeros(max(num_bytes // 4, 1), device=device)
    return repeated_s(
        lambda: dist.all_reduce(values), device, before=lambda: dist.barrier(group=control)
    )


def send_s(
    device: torch.device,
    num_bytes: int,
    pairs: Sequence[tuple[int, int]],
    control: "dist.ProcessGroup | None",
) -> list[float]:
    """Seconds in which the first rank of each pair sends to the second and hears that it came.

    All pairs send at once. Empty on ranks that do not send first.
    """
    values = torch.zeros(max(num_bytes // 4, 1), device=device)
    answer = torch.zeros(1, device=device)
    rank = dist.get_rank()
    to = next((b for a, b in pairs if a == rank), None)
    source = next((a for a, b in pairs if b == rank), None)

    def exchange() -> None:
        if to is not None:
            dist.send(values, to)
            dist.recv(answer, to)
        if source is not None:
            dist.recv(values, source)
            dist.send(answer, source)

    found = repeated_s(exchange, device, before=lambda: dist.barrier(group=control))
    return found if to is not None else []


def clock_offset_s(
    firsts: Sequence[int], control: "dist.ProcessGroup | None"
) -> tuple[float, float]:
    """(how far this rank's clock is ahead of rank 0's, how far off that may be), in seconds.

    The ranks `firsts` ask rank 0 in turn; others get (0, 0). Of the answers the one that came
    fastest counts: rank 0 read its clock within that time.

    Source: Cristian, Distributed Computing 3 (1989) 146.
    """
    rank, best, bound = dist.get_rank(), 0.0, float("inf")
    told = torch.zeros(1, dtype=torch.float64)
    for asking in firsts:
        if asking == 0 or rank not in (0, asking):
            continue
        for _ in range(EXCHANGES):
            if rank == 0:
                dist.recv(told, asking, group=control)
                told[0] = time.time()
                dist.send(told, asking, group=control)
                continue
            start_s = time.time()
            dist.send(told, 0, group=control)
            dist.recv(told, 0, group=control)
            end_s = time.time()
            if end_s - start_s < bound:
                bound = end_s - start_s
                best = (start_s + end_s) / 2 - float(told[0])
    return (best, bound / 2) if bound < float("inf") else (0.0, 0.0)


def node_rounds(firsts: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Rounds of pairs of ranks, each node's first, in which every node sends and receives once.

    Each node meets the next, and the last one the first, so that a slow node is in two pairs and a
    slow cable in one.
    """
    count = len(firsts)
    if count < 2:
        return []
    ring = [(firsts[i], firsts[(i + 1) % count]) for i in range(count)]
    if count == 2:
        return [[ring[0]], [ring[1]]]
    rounds = [ring[0 : count - count % 2 : 2], ring[1 : count - count % 2 : 2]]
    return rounds + ([[ring[-1]]] if count % 2 else [])
