"""How long a whole machine's step takes to play: `python -m benchmarks.rehearsal_speed`.

A GPT of a trillion parameters on 61,440 devices in several layouts, and before it an all-reduce of
65,536 ranks by LogGP and 60,000 flows on a dragonfly; seconds are of the process (user and system),
the median of five with the least and the most, memory is its largest.
"""

import resource
import time
from collections.abc import Callable
from math import prod

import numpy as np

from armillary import machines
from armillary.axes import discover
from armillary.core.chance import run_goodput
from armillary.models import families
from armillary.plan import software as programs
from armillary.plan.grid import Grid
from armillary.plan.request import as_it_runs
from armillary.plan.workload import workload_of
from armillary.rehearse.congestion import Congestion
from armillary.rehearse.jitter import Jitter, sampled_steps
from armillary.rehearse.links import Links
from armillary.rehearse.periods import step_of
from armillary.spec import Layout, Machine, ModelGraph
from benchmarks.simulators import own_flows, own_loggp

MODEL = "gpt:layers=128,hidden=25600,heads=160,seq=2048,vocab=51200"
BATCH = 15360
NUM_CALLS = 5
LAYOUTS = {
    "pipeline 5, tensor 16": "pipeline=5,sharded=768,tensor=16,pipeline.schedule="
    "interleaved_zero_bubble,micro_batch_size=2",
    "pipeline 16, tensor 8": "pipeline=16,data=480,tensor=8,pipeline.schedule=1f1b",
    "pipeline 64, tensor 4": "pipeline=64,data=240,tensor=4,pipeline.schedule=1f1b",
    "sharded 7,680, tensor 8": "sharded=7680,tensor=8,sharded.zero=3",
}


def timed(call: Callable[[], object]) -> str:
    """The median of the process's seconds of five calls, with the least and the most."""
    found = []
    for _ in range(NUM_CALLS):
        started_s = time.process_time()
        call()
        found.append(time.process_time() - started_s)
    return f"{np.median(found):.3g} s ({min(found):.3g} to {max(found):.3g})"


def row(name: str, words: str, graph: ModelGraph, machine: Machine) -> str:
    """A line of the table: one layout."""
    software, _ = as_it_runs(programs.load("armillary"), machine.device)
    layout = Layout.parse(f"{words},precision=bfloat16")
    grid = Grid.of(layout, tuple(discover()), layout.micro_batch_size or 1)
    load = workload_of(graph, machine, software, grid, BATCH)
    number = prod(load.degrees.values())
    step_s, step, played = step_of(load, Links(machine, load.degrees))

    def with_flows() -> object:
        congestion = Congestion(machine=machine, num_ranks=number)
        return step_of(load, Links(machine, load.degrees, congestion=congestion))

    def days() -> object:
        return run_goodput(
            step_s=step_s,
            days=30.0,
            between_s=3000.0,
            interval_s=600.0,
            checkpoint_s=60.0,
            restart_s=600.0,
            num_runs=200,
            rng=np.random.default_rng(0),
        )

    plain = timed(lambda: step_of(load, Links(machine, load.degrees)))
    jitter = timed(lambda: sampled_steps(step, played, Jitter(background=0.1), 32, 0))
    return (
        f"| {name} ({number:,}) | {len(step.tasks):,} | {step_s:.1f} | {plain} | "
        f"{timed(with_flows)} | {jitter} | {timed(days)} |"
    )


def main() -> None:
    _, all_reduce = own_loggp("halving and doubling", 65536, 2**20)
    print(f"all-reduce of 65,536 ranks by LogGP: {timed(all_reduce)}")
    _, ring = own_flows("batch_isend_irecv", 60000, "8:7500")
    print(f"60,000 flows, random nodes of a dragonfly: {timed(ring)}\n")
    machine, graph = machines.load("aurora"), families.parse(MODEL)
    print("| layout | tasks | a step, s | play | with flows | 32 steps with jitter | 30 days |")
    print("|---|---|---|---|---|---|---|")
    for name, words in LAYOUTS.items():
        print(row(name, words, graph, machine))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nlargest memory of the process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
