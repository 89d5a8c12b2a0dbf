"""Does an LSTM cut by hidden unit pay? A layer on two ranks against torch's own on one, in turn.

Each rank holds the gates of half of the hidden units and needs the whole hidden state at every
time step, so the states are gathered once a step forward, and their gradients summed and shared
out once a step backward. Beside it the same layer cut by samples, which is what `data=2` does.
All is forward and backward of one layer in float32, one thread a rank, by gloo on this machine.

Run: `python -m benchmarks.recurrent_cut`; the table goes to benchmarks/results/recurrent_cut.md.
"""

import argparse
import functools
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from armillary.verify.ranks import Ranks
from benchmarks.ratios import Ratio, interval_of

# Shapes: B samples, T time steps, F features, H hidden units, N of them of this rank
RESULTS = Path(__file__).parent / "results" / "recurrent_cut.md"
NUM_RANKS = 2
SERIAL, LOOP, UNITS, SAMPLES = "torch's own", "steps in Python", "by hidden unit", "by samples"
EQUAL = 1e-12


@dataclass(frozen=True, slots=True)
class Size:
    """A layer and what it is fed."""

    num_samples: int
    num_steps: int
    num_features: int
    hidden_size: int


SIZES = (
    Size(32, 48, 16, 64),
    Size(32, 48, 128, 256),
    Size(32, 48, 512, 512),
    Size(64, 24, 1024, 1024),
)


class Gather(torch.autograd.Function):
    """The states of all ranks side by side; backward, the sum of all ranks' gradients, cut."""

    @staticmethod
    def forward(ctx: Any, mine_BN: Tensor) -> Tensor:
        ctx.num_units = mine_BN.shape[1]
        every = [torch.empty_like(mine_BN) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine_BN.contiguous())
        return torch.cat(every, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        parts = torch.stack(gradients[0].split(ctx.num_units, 1))
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter_tensor(mine, parts.flatten(0, 1))
        return mine


def run_in_steps(
    layer: nn.LSTM, x_BTF: Tensor, units: slice, gather: Callable[[Tensor], Tensor]
) -> Tensor:
    """The hidden states [B, T, N] of `units`, step by step; `gather` makes a state whole."""
    weights = [w.view(4, layer.hidden_size, -1)[:, units].flatten(0, 1) for w in layer.parameters()]
    w_in, w_hidden, b_in, b_hidden = weights
    inputs = x_BTF @ w_in.T + (b_in + b_hidden).squeeze(-1)
    cell_BN = x_BTF.new_zeros(len(x_BTF), len(w_in) // 4)
    state_BH = x_BTF.new_zeros(len(x_BTF), layer.hidden_size)
    states = []
    for step in range(x_BTF.shape[1]):
        gates = inputs[:, step] + state_BH @ w_hidden.T
        take, keep, new, give = gates.chunk(4, 1)
        cell_BN = keep.sigmoid() * cell_BN + take.sigmoid() * new.tanh()
        states.append(give.sigmoid() * cell_BN.tanh())
        if step + 1 < x_BTF.shape[1]:
            state_BH = gather(states[-1])
    return torch.stack(states, 1)


def contenders(size: Size, dtype: torch.dtype) -> dict[str, tuple[bool, Callable[[], Tensor]]]:
    """By name whether all ranks take part, and a pass forward and backward that gives the states.

    What a contender keeps of the gradients lies in `layer.weight_hh_l0.grad`.
    """
    torch.manual_seed(0)
    layer = nn.LSTM(size.num_features, size.hidden_size, batch_first=True).to(dtype)
    x_BTF = torch.randn(size.num_samples, size.num_steps, size.num_features, dtype=dtype)
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    num_units = size.hidden_size // num_ranks
    units = slice(rank * num_units, (rank + 1) * num_units)
    mine_BTF = x_BTF.chunk(num_ranks)[rank]

    def passed(forward: Callable[[], Tensor], is_averaged: bool = False) -> Tensor:
        layer.zero_grad()
        states = forward()
        (states**2).sum().backward()
        if is_averaged:
            flat = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
            dist.all_reduce(flat)
        return states

    run = functools.partial(run_in_steps, layer, x_BTF)
    whole = slice(0, size.hidden_size)
    return {
        SERIAL: (False, lambda: passed(lambda: layer(x_BTF)[0])),
        LOOP: (False, lambda: passed(lambda: run(whole, lambda state: state))),
        UNITS: (True, lambda: passed(lambda: run(units, Gather.apply))),
        SAMPLES: (True, lambda: passed(lambda: layer(mine_BTF)[0], is_averaged=True)),
    }


def check(size: Size) -> None:
    """Raise unless the layer by hidden unit gives torch's states, in float64."""
    made = contenders(size, torch.float64)
    theirs_BTH = made[SERIAL][1]()
    ours_BTN = made[UNITS][1]()
    num_units = ours_BTN.shape[-1]
    theirs_BTN = theirs_BTH[..., dist.get_rank() * num_units :][..., :num_units]
    assert (ours_BTN - theirs_BTN).abs().max() < EQUAL


def measure(size: Size, num_rounds: int, num_passes: int) -> dict[str, list[float]]:
    """Seconds of a pass by contender and round, on this rank; contenders take turns."""
    dist.init_process_group("gloo")
    try:
        check(size)
        made = contenders(size, torch.float32)
        taken: dict[str, list[float]] = {name: [] for name in made}
        for index in range(num_rounds + 1):
            for name in list(made) if index % 2 else list(reversed(made)):
                takes_all, passes = made[name]
                dist.barrier()
                begun_s = time.perf_counter()
                for _ in range(num_passes):
                    if takes_all or dist.get_rank() == 0:
                        passes()
                dist.barrier()
                if index:  # the first round warms up
                    taken[name].append((time.perf_counter() - begun_s) / num_passes)
        return taken
    finally:
        dist.destroy_process_group()


def rows(found: dict[Size, dict[str, list[float]]]) -> list[list[str]]:
    """A row a size: milliseconds, then ratios to torch's own with intervals over rounds."""
    made = []
    for size, taken in found.items():
        ratios: dict[str, Ratio] = {
            name: interval_of([a / b for a, b in zip(times, taken[SERIAL], strict=True)])
            for name, times in taken.items()
        }
        serial = interval_of([1e3 * seconds for seconds in taken[SERIAL]])
        made.append(
            [
                f"{size.num_samples} x {size.num_steps}",
                f"{size.num_features} to {size.hidden_size}",
                f"{serial.median:.1f}",
                *(_told(ratios[name]) for name in (LOOP, UNITS, SAMPLES)),
            ]
        )
    return made


def _told(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def write(lines: list[list[str]], words: str) -> None:
    """The table, with how it was made."""
    head = [
        "samples x steps",
        "features to units",
        f"{SERIAL}, 1 rank, ms",
        f"{LOOP}, 1 rank",
        f"{UNITS}, 2 ranks",
        f"{SAMPLES}, 2 ranks",
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])
    RESULTS.write_text(
        f"# An LSTM cut by hidden unit\n\n{(__doc__ or '').partition('Run:')[0].strip()}\n\n"
        f"The last three columns are times over torch's own on one rank, the median over rounds "
        f"with a 95 % interval; below 1 is faster.\n\n{table}\n\n{words}\n"
    )


def main() -> None:
    """Measure every size and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrent_cut")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--passes", type=int, default=2, help="of each contender in a round")
    chosen = parser.parse_args()
    before = os.getloadavg()[0]
    found: dict[Size, dict[str, list[float]]] = {}
    with Ranks(600) as ranks:
        for size in SIZES:
            answers = ranks.run(NUM_RANKS, measure, size, chosen.rounds, chosen.passes)
            found[size] = answers[0]
    words = (
        f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}; load "
        f"{before:.1f} before, {os.getloadavg()[0]:.1f} after; {chosen.rounds} rounds of "
        f"{chosen.passes} passes."
    )
    write(rows(found), words)
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
