"""The same training step in LogGOPSim, in ASTRA-sim and here.

Two steps. In one all ranks hold the whole model: a forward pass, and a backward pass whose blocks
each send their gradients while the next is computed, by halving and doubling. LogGOPSim is given
every message of every rank; ASTRA-sim the passes and the collectives of every rank; here one rank
stands for all, since all are alike. The other is the step of a plan: a GPT in a pipeline, as
`armillary rehearse --goal` writes it, in which one rank of each stage stands for its replicas.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.simulators_astra import collective_node, compute_node
from benchmarks.simulators_astra import play as play_astra
from benchmarks.simulators_run import spent

if TYPE_CHECKING:
    from armillary.core.play import Played
    from armillary.core.rounds import Index
    from armillary.rehearse.step import Step
    from armillary.spec import Machine
    from armillary.spec.workload import Workload

TICK_S = 2e-11
"""LogGOPSim counts in whole ticks; one byte takes one, which is 50 GB/s."""
LATENCY_TICKS = 125_000  # 2.5 us, LogGOPSim's own default
MOST_BYTES = 2_000_000_000
PLANNED = "pipeline 16, tensor 8"
"""The layout of `benchmarks.rehearsal_speed`: a GPT of 10^12 parameters on 61,440 devices."""


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Ranks that hold the whole model: seconds of a block's passes, and bytes of its gradients."""

    num_ranks: int
    num_blocks: int = 8
    forward_s: float = 1e-3
    backward_s: float = 2e-3
    block_bytes: int = 64 * 2**20

    def goal(self, path: Path) -> None:
        """Every message of every rank, as LogGOPSim reads it.

        There a rank's sends wait for what it computes, so the gradients are sent by a rank of their
        own beside each, which a message of one byte tells that a block is done.
        """
        from armillary.core.rounds import RABENSEIFNER

        rounds = [*RABENSEIFNER.expand(self.num_ranks, self.block_bytes)]
        forward, backward = (round(s / TICK_S) for s in (self.forward_s, self.backward_s))
        with path.open("w") as file:
            file.write(f"num_ranks {2 * self.num_ranks}\n\n")
            for rank in range(self.num_ranks):
                beside = self.num_ranks + rank
                lines = [f"f: calc {forward * self.num_blocks}"]
                for block in range(self.num_blocks):
                    before = f"b{block - 1}" if block else "f"
                    lines += [f"b{block}: calc {backward}", f"b{block} requires {before}"]
                    lines += [f"t{block}: send 1b to {beside} tag {block}"]
                    lines += [f"t{block} requires b{block}"]
                file.write("\n".join([f"rank {rank} {{", *lines, "}", "", ""]))
            for rank in range(self.num_ranks):
                lines = self._gradients(rank, [(one.target, one.size) for one in rounds])
                beside = self.num_ranks + rank
                file.write("\n".join([f"rank {beside} {{", *lines, "}", "", ""]))

    def _gradients(self, rank: int, rounds: "list[tuple[Index, Index]]") -> list[str]:
        """What the rank beside `rank` sends and receives; partners are the same both ways."""
        lines: list[str] = []
        last: list[str] = []
        for block in range(self.num_blocks):
            lines.append(f"t{block}: recv 1b from {rank} tag {block}")
            waits = [f"t{block}"]
            for nth, (target, size) in enumerate(rounds):
                other, tag = self.num_ranks + int(target[rank]), 10**6 + block * len(rounds) + nth
                now = [f"s{block}x{nth}", f"r{block}x{nth}"]
                lines.append(f"{now[0]}: send {int(size[rank])}b to {other} tag {tag}")
                lines.append(f"{now[1]}: recv {int(size[rank])}b from {other} tag {tag}")
                lines += [f"{one} requires {done}" for one in now for done in (*waits, *last)]
                waits, last = [], now
        return lines

    def trace(self) -> bytes:
        """One rank's passes and all-reduces, as ASTRA-sim reads them."""
        nodes = [compute_node(0, self.forward_s * self.num_blocks, ())]
        for block in range(self.num_blocks):
            number = 2 * block + 1
            nodes.append(compute_node(number, self.backward_s, (max(number - 2, 0),)))
            nodes.append(collective_node(number + 1, "all_reduce", self.block_bytes, (number,)))
        return b"".join(nodes)

    def play(self) -> float:
        """Seconds of the step here: a stream of passes and one of gradients."""
        from armillary.core import rounds
        from armillary.core.collectives import LogGP
        from armillary.core.play import Tasks, play

        network = LogGP(latency=LATENCY_TICKS, overhead=0, gap=0, gap_per_byte=1)
        form = rounds.RABENSEIFNER
        sum_ticks = rounds.folded_time(network, form, self.num_ranks, self.block_bytes)
        tasks = Tasks()
        passes, gradients = tasks.add_stream(), tasks.add_stream()
        tasks.add(passes, self.forward_s * self.num_blocks)
        for _ in range(self.num_blocks):
            done = tasks.add(passes, self.backward_s)
            tasks.add(gradients, sum_ticks * TICK_S, (done,))
        return play(tasks).step_s


def loggopsim(peers: Path, goal: Path, words: list[str]) -> tuple[float, float, float, float]:
    """The last tick of a GOAL program, seconds to translate and to play it, bytes of memory."""
    binary = goal.with_suffix(".bin")
    told = [str(peers / "bin/txt2bin"), "-i", str(goal), "-o", str(binary)]
    _, prepare_s, prepare_bytes = spent(told)
    text, run_s, memory = spent([str(peers / "bin/LogGOPSim"), "-f", str(binary), "-b", *words])
    last = next(line for line in text.splitlines() if "Maximum finishing time" in line)
    ticks = int(last.split(":")[1].split()[0])
    return float(ticks), prepare_s, run_s, max(memory, prepare_bytes)


def replicas_in_loggopsim(peers: Path, step: Replicas) -> tuple[float, float, float, float]:
    """Seconds predicted, to prepare and to run, and bytes of memory."""
    words = ["-L", str(LATENCY_TICKS), "-o", "0", "-g", "0", "-G", "1", "-S", str(MOST_BYTES)]
    with tempfile.TemporaryDirectory() as name:
        goal = Path(name) / "step.goal"
        step.goal(goal)
        ticks, prepare_s, run_s, memory = loggopsim(peers, goal, words)
    return ticks * TICK_S, prepare_s, run_s, memory


def replicas_in_astra(peers: Path, step: Replicas) -> tuple[float, float, float] | None:
    """Seconds predicted and to run, and bytes of memory: one switch of 50 GB/s and 2.5 us."""
    return play_astra(peers, step.trace(), [step.num_ranks], ["halvingDoubling"], (50.0,), 2500.0)


def own_replicas(num_ranks: int) -> tuple[float, Callable[[], float]]:
    """Ours: what it says, and the call that says it."""
    step = Replicas(num_ranks=num_ranks)
    return step.play(), step.play


# ------------------------------------------------------------------------------- the step of a plan
@dataclass(frozen=True)
class Planned:
    """A plan's step whose sends take no time, so that any simulator's network is left out of it."""

    load: "Workload"
    machine: "Machine"

    @property
    def num_devices(self) -> int:
        """The devices that the step is of."""
        return prod(self.load.degrees.values())

    def play(self) -> "tuple[Step, Played]":
        """Its tasks, and when each of them runs."""
        from armillary.rehearse.links import Links
        from armillary.rehearse.periods import step_of
        from armillary.rehearse.step import AHEAD, BACK

        _, step, _ = step_of(self.load, Links(self.machine, self.load.degrees))
        for index, label in enumerate(step.labels):
            if label.lane in (AHEAD, BACK):
                step.tasks.fixed_s[index] = step.tasks.wire_s[index] = 0.0
        return step, step.play()


def planned() -> Planned:
    """The step of `PLANNED` on Aurora."""
    from armillary import machines
    from armillary.axes import discover
    from armillary.models import families
    from armillary.plan import software as programs
    from armillary.plan.grid import Grid
    from armillary.plan.request import as_it_runs
    from armillary.plan.workload import workload_of
    from armillary.spec import Layout
    from benchmarks.rehearsal_speed import BATCH, LAYOUTS, MODEL

    machine, graph = machines.load("aurora"), families.parse(MODEL)
    software, _ = as_it_runs(programs.load("armillary"), machine.device)
    layout = Layout.parse(f"{LAYOUTS[PLANNED]},precision=bfloat16")
    grid = Grid.of(layout, tuple(discover()), layout.micro_batch_size or 1)
    return Planned(workload_of(graph, machine, software, grid, BATCH), machine)


def own_planned() -> tuple[float, Callable[[], float]]:
    """Ours: what it says, and the call that says it."""
    step = planned()

    def run() -> float:
        return step.play()[1].step_s

    return run(), run


def planned_in_loggopsim(peers: Path) -> tuple[float, float, float, float, int]:
    """Seconds predicted, to prepare and to run, bytes of memory, and devices that are played for.

    Its network's numbers are all 0.
    """
    from armillary.rehearse.goal import goal

    step = planned()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "plan.goal"
        path.write_text(goal(*step.play()))
        words = [word for letter in "LogG" for word in (f"-{letter}", "0")]
        ticks, *costs = loggopsim(peers, path, [*words, "-S", str(MOST_BYTES)])
    prepare_s, run_s, memory = costs
    return ticks * 1e-9, prepare_s, run_s, memory, step.num_devices
