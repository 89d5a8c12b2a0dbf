"""The same collectives in other simulators and in ours: time, memory, ranks a second, error.

python -m benchmarks.simulators --peers DIR [--large] [--out benchmarks/results/simulators.md]

DIR/bin holds what was built of the peers: LogGOPSim, schedgen and txt2bin (its sorts made stable,
or it ends early from 16 ranks on), SimAI_analytical, AstraSim_Analytical_Congestion_Unaware with
DIR/astra, its sources. A peer that is not there is left out, and named.
Every run is a process of its own; times are its user and system seconds, without starting Python.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.simulators_astra import astra
from benchmarks.simulators_run import spent
from benchmarks.simulators_step import (
    Replicas,
    own_planned,
    own_replicas,
    planned_in_loggopsim,
    replicas_in_astra,
    replicas_in_loggopsim,
)

MIB = 2**20
# NCCL 2.29.2 on 8 H100, all-reduce: aiconfigurator-core 0.12.0 (results/kernels_nccl.csv), by MiB.
MEASURED_H100_US = {1: 25.4, 16: 121.91, 256: 1092.1}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case in one simulator. `truth_s` is what it should say, where that is known."""

    case: str
    simulator: str
    num_ranks: int
    predicted_s: float
    prepare_s: float = 0.0
    run_s: float
    memory_bytes: float
    truth_s: float = 0.0

    def line(self) -> str:
        """The row of a table."""
        error = f"{self.predicted_s / self.truth_s - 1:+.1%}" if self.truth_s else ""
        total = self.prepare_s + self.run_s
        who = f"| {self.case} | {self.simulator} | {self.num_ranks:,} "
        return who + (
            f"| {self.predicted_s * 1e6:,.1f} "
            f"| {self.prepare_s:.3g} | {self.run_s:.3g} | {self.num_ranks / max(total, 1e-9):,.0f} "
            f"| {self.memory_bytes / MIB:,.0f} | {error} |"
        )


# ------------------------------------------------------------------------------------ LogGOPSim
PATTERNS = {
    "halving and doubling": "allreduce_recdoub",
    "ring": "allreduce_ring",
    "dissemination": "dissemination",
    "pairwise all-to-all": "linear_alltoall",
}


def loggopsim(peers: Path, case: str, num_ranks: int, size: int, truth_s: float) -> Row:
    """One collective, generated, translated and played by LogGOPSim's own tools."""
    with tempfile.TemporaryDirectory() as folder:
        goal, binary = f"{folder}/one.goal", f"{folder}/one.bin"
        ask = ["-p", PATTERNS[case], "-s", str(num_ranks), "-d", str(size), "-o", goal]
        _, made_s, made_bytes = spent([str(peers / "bin/schedgen"), *ask])
        _, told_s, _ = spent([str(peers / "bin/txt2bin"), "-i", goal, "-o", binary])
        os.remove(goal)
        text, run_s, memory = spent([str(peers / "bin/LogGOPSim"), "-f", binary, "-b"])
    last = next(line for line in text.splitlines() if "Maximum finishing time" in line)
    return Row(
        case=f"all-reduce, {case}, {size / MIB:g} MiB" if "allreduce" in PATTERNS[case] else case,
        simulator="LogGOPSim",
        num_ranks=num_ranks,
        predicted_s=int(last.split(":")[1].split()[0]) * 1e-9,
        prepare_s=made_s + told_s,
        run_s=run_s,
        memory_bytes=max(memory, made_bytes),
        truth_s=truth_s,
    )


# ----------------------------------------------------------------------------------------- SimAI
def simai(peers: Path, size: int, truth_s: float) -> Row:
    """One all-reduce over 8 GPUs in SimAI-analytical, given the bandwidth of NVLink."""
    text = (
        "HYBRID_TRANSFORMER_FWD_IN_BCKWD model_parallel_NPU_group: 8 ep: 1 pp: 1 vpp: 1 ga: 1 "
        "all_gpus: 8 checkpoints: 0 checkpoint_initiates: 0\n1\n"
        f"one -1 1000 ALLREDUCE {size} 1 NONE 0 1 NONE 0 1\n"
    )
    root = next(peers.glob("simai*/astra-sim-alibabacloud")).parent
    (root / "results").mkdir(exist_ok=True)
    work = root / "one.txt"
    work.write_text(text)
    ask = ["-w", str(work), "-g", "8", "-g_p_s", "8", "-r", "one-", "-nv", "360", "-nic", "48.5"]
    _, run_s, memory = spent([str(peers / "bin/SimAI_analytical"), *ask, "-n_p_s", "8"], str(root))
    table = next((root / "results").glob("one-*.csv")).read_text().splitlines()
    exposed = next(line for line in table if line.startswith("one,")).split(",")[5]
    return Row(
        case=f"all-reduce, 8 H100, {size // MIB} MiB",
        simulator="SimAI-analytical (360 GB/s given)",
        num_ranks=8,
        predicted_s=float(exposed) * 1e-6,
        run_s=run_s,
        memory_bytes=memory,
        truth_s=truth_s,
    )


# ------------------------------------------------------------------------------------------ ours
def own_loggp(case: str, num_ranks: int, size: int) -> tuple[float, Callable[[], float]]:
    """Seconds by LogGP, in the numbers that LogGOPSim is given by default."""
    from armillary.core import rounds
    from armillary.core.collectives import LogGP

    network = LogGP(latency=2500, overhead=1500, gap=1000, gap_per_byte=6)
    forms = {
        "halving and doubling": rounds.RABENSEIFNER,
        "ring": rounds.RING_ALL_REDUCE,
        "dissemination": rounds.DISSEMINATION,
        "pairwise all-to-all": rounds.PAIRWISE,
    }
    if case == "pairwise all-to-all":
        size *= num_ranks * num_ranks  # what one sends to one other, there

    def run() -> float:
        return rounds.folded_time(network, forms[case], num_ranks, size) * 1e-9

    return run(), run


def own_h100(size: int) -> tuple[float, Callable[[], float]]:
    """Seconds of an all-reduce over the 8 H100 of a node."""
    from armillary import machines, networks

    machine = machines.load("dgx_h100")

    def run() -> float:
        return float(networks.seconds(machine, "all_reduce", size, [(8, 1)]))

    return run(), run


def own_two_dims(collective: str, num_ranks: int, size: int) -> tuple[float, Callable[[], float]]:
    """Seconds of a collective over nodes of 8 behind switches, flow by flow."""
    from armillary import networks
    from armillary.networks import Burst
    from tests.contract import small_machines as small

    levels = [
        small.level("node", 8, "switch", 4e11, latency_s=5e-7),
        small.level("machine", num_ranks, "fat_tree", 5e10, latency_s=5e-7),
    ]
    machine = small.machine(levels, 8)
    burst = Burst(collective=collective, bytes=float(size), spans=((num_ranks, 1),))

    def run() -> float:
        return float(networks.contended_seconds(machine, [burst]).seconds[0])

    return run(), run


def own_flows(collective: str, num_ranks: int, spans: str) -> tuple[float, Callable[[], float]]:
    """Seconds of concurrent groups on Aurora's dragonfly, nodes drawn at random."""
    from armillary import machines, networks
    from armillary.networks import Burst

    machine = machines.load("aurora")
    node = machine.ranks_per_node
    drawn = np.random.default_rng(0).permutation(machine.num_nodes)[: num_ranks // node]
    placement = (drawn[:, None] * node + np.arange(node)).reshape(-1)
    pairs = tuple((int(d), int(s)) for d, s in (one.split(":") for one in spans.split(",")))
    burst = Burst(collective=collective, bytes=2.0**30, spans=pairs)

    def run() -> float:
        found = networks.contended_seconds(
            machine, [burst], num_ranks=num_ranks, placement=placement
        )
        return float(found.seconds[0])

    return run(), run


OWN = {
    "loggp": own_loggp,
    "h100": own_h100,
    "two_dims": own_two_dims,
    "flows": own_flows,
    "replicas": own_replicas,
    "planned": own_planned,
}


def own(kind: str, arguments: list[str], case: str, num_ranks: int, truth_s: float = 0.0) -> Row:
    """One of ours in a process of its own, the median of its runs."""
    code = [sys.executable, "-m", "benchmarks.simulators", "--own", kind, *arguments]
    text, _, memory = spent(code)
    found = json.loads(text.splitlines()[-1])
    return Row(
        case=case,
        simulator="armillary",
        num_ranks=num_ranks,
        predicted_s=found["predicted_s"],
        run_s=found["run_s"],
        memory_bytes=memory,
        truth_s=truth_s,
    )


def play_own(kind: str, arguments: list[str]) -> None:
    """Run one of ours and print what it says and how long it takes."""
    values = [int(one) if one.isdigit() else one for one in arguments]
    predicted_s, run = OWN[kind](*values)  # type: ignore[operator]
    times, until = [], time.process_time() + 2.0
    while not times or (time.process_time() < until and len(times) < 50):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    print(json.dumps({"predicted_s": predicted_s, "run_s": float(np.median(times))}))


# ------------------------------------------------------------------------------------------ cases
def loggp_rows(peers: Path, large: bool) -> list[Row]:
    """The same LogGP collectives here and there; theirs is the truth for ours."""
    cases = [
        ("halving and doubling", 1024, MIB),
        ("ring", 256, MIB),
        ("dissemination", 4096, 65536),
        # Theirs posts all messages at once, 4 KiB to each; ours waits for each, as MPICH does.
        ("pairwise all-to-all", 256, 4096),
    ]
    if large:
        cases += [("halving and doubling", 65536, MIB), ("ring", 1024, MIB)]
    rows = []
    for case, num_ranks, size in cases:
        theirs = None
        if (peers / "bin/LogGOPSim").exists():
            theirs = loggopsim(peers, case, num_ranks, size, 0.0)
            rows.append(theirs)
        name = theirs.case if theirs else case
        is_same = theirs is not None and case != "pairwise all-to-all"
        truth_s = theirs.predicted_s if theirs is not None and is_same else 0.0
        rows.append(own("loggp", [case, str(num_ranks), str(size)], name, num_ranks, truth_s))
    return rows


def h100_rows(peers: Path) -> list[Row]:
    """All-reduces over 8 H100 against what NCCL took; ours is a fit of the same tables."""
    rows = []
    for mib, measured_us in MEASURED_H100_US.items():
        if (peers / "bin/SimAI_analytical").exists():
            rows.append(simai(peers, mib * MIB, measured_us * 1e-6))
        case = f"all-reduce, 8 H100, {mib} MiB"
        # Its own validated files for this node: one switch of 400 GB/s and 936.25 ns, 4 pieces.
        found = astra(peers, "all_reduce", 8, mib * MIB, (400.0,), 936.25, (2, 4))
        if found is not None:
            rows.append(astra_row(case, 8, found, measured_us * 1e-6))
        rows.append(own("h100", [str(mib * MIB)], case, 8, measured_us * 1e-6))
    return rows


def astra_row(
    case: str, num_ranks: int, found: tuple[float, float, float], truth_s: float = 0.0
) -> Row:
    """What ASTRA-sim says."""
    predicted_s, run_s, memory = found
    return Row(
        case=case,
        simulator="ASTRA-sim analytical",
        num_ranks=num_ranks,
        predicted_s=predicted_s,
        run_s=run_s,
        memory_bytes=memory,
        truth_s=truth_s,
    )


def switch_rows(peers: Path, large: bool) -> list[Row]:
    """A 64 MiB all-reduce over nodes of 8, and groups that share a dragonfly."""
    rows = []
    names = {"all_reduce": "all-reduce", "all_to_all_single": "all-to-all"}
    for collective, name in names.items():
        # An all-to-all over 4,096 was stopped in ASTRA-sim after 160 s, at 2.6 GB and growing.
        more = (4096,) if large and collective == "all_reduce" else ()
        for num_ranks in (256, 1024, *more):
            case = f"{name}, nodes of 8 behind switches, 64 MiB"
            found = astra(peers, collective, num_ranks, 64 * MIB, (400.0, 50.0), 500.0)
            if found is not None:
                rows.append(astra_row(case, num_ranks, found))
            rows.append(
                own("two_dims", [collective, str(num_ranks), str(64 * MIB)], case, num_ranks)
            )
    flows = (
        ("batch_isend_irecv", "8:7500", "60,000 ring messages, random nodes of a dragonfly"),
        ("all_gather_into_tensor", "50:1200", "1,200 all-gathers of 50, the same"),
        ("all_to_all_single", "96:1", "625 all-to-alls of 96, the same"),
    )
    return rows + [own("flows", [c, "60000", s], name, 60000) for c, s, name in flows]


def loggopsim_row(
    case: str, num_ranks: int, predicted_s: float, prepare_s: float, run_s: float, memory: float
) -> Row:
    """What LogGOPSim found, as a row."""
    return Row(
        case=case,
        simulator="LogGOPSim",
        num_ranks=num_ranks,
        predicted_s=predicted_s,
        prepare_s=prepare_s,
        run_s=run_s,
        memory_bytes=memory,
    )


def step_rows(peers: Path, large: bool) -> list[Row]:
    """The same training step here and there; LogGOPSim's is the truth for the others."""
    rows, has_loggopsim = [], (peers / "bin/LogGOPSim").exists()
    for num_ranks in (256, 1024, *((4096,) if large else ())):
        case = "a step, gradients of 8 blocks of 64 MiB behind the backward pass"
        truth_s = 0.0
        if has_loggopsim:
            truth_s, *costs = replicas_in_loggopsim(peers, Replicas(num_ranks=num_ranks))
            rows.append(loggopsim_row(case, num_ranks, truth_s, *costs))
        found = replicas_in_astra(peers, Replicas(num_ranks=num_ranks))
        if found is not None:
            rows.append(astra_row(case, num_ranks, found, truth_s))
        rows.append(own("replicas", [str(num_ranks)], case, num_ranks, truth_s))
    case, num_ranks, truth_s = "a planned step of a GPT, pipeline 16, sends free", 61440, 0.0
    if has_loggopsim:
        truth_s, prepare_s, run_s, memory, num_ranks = planned_in_loggopsim(peers)
        rows.append(loggopsim_row(case, num_ranks, truth_s, prepare_s, run_s, memory))
    return [*rows, own("planned", [], case, num_ranks, truth_s)]


HEAD = (
    "| case | simulator | ranks | predicted us | prepare s | run s | ranks/s | MiB | error |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, default=Path("peers"))
    parser.add_argument("--large", action="store_true", help="65,536 ranks in the peers too")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--own", nargs="+", metavar="ARGUMENT")
    chosen = parser.parse_args()
    if chosen.own:
        play_own(chosen.own[0], chosen.own[1:])
        return
    rows = loggp_rows(chosen.peers, chosen.large) + h100_rows(chosen.peers)
    rows += switch_rows(chosen.peers, chosen.large) + step_rows(chosen.peers, chosen.large)
    lines = [HEAD, *(row.line() for row in rows)]
    lines += ["", f"{platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}"]
    print("\n".join(lines))
    if chosen.out:
        chosen.out.write_text("\n".join(lines) + "\n")
        chosen.out.with_suffix(".json").write_text(
            json.dumps([asdict(row) for row in rows], indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
