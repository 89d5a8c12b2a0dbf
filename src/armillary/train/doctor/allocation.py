"""The ranks of an allocation examine it together: every rank measures, rank 0 judges and tells."""

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from armillary.axes import discover
from armillary.core.medians import Median, median_of
from armillary.machines import load
from armillary.spec import Layout, SpecError
from armillary.step.world import World, join
from armillary.train.doctor import findings, store, timing
from armillary.train.doctor.expected import expected_bytes_per_s
from armillary.train.doctor.facts import Facts, facts_of
from armillary.train.doctor.findings import Check
from armillary.train.doctor.transport import note_transport, transport_check
from armillary.train.launchers import Place, find_here
from armillary.train.start.rendezvous import seat_of
from armillary.train.start.warm import loopback

MOST_NAMES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What to examine: the machine to compare with, where runs and data lie, and the device."""

    machine: str = ""
    runs: Path = Path("runs")
    store: str = ""
    device: str = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """What was found: the ranks, each check, and each timing with its 95 % interval.

    `timings` has by name the unit, and the median with its interval.
    """

    launcher: str
    num_ranks: int
    num_nodes: int
    device: str
    backend: str
    checks: tuple[Check, ...]
    timings: dict[str, tuple[str, Median]] = field(default_factory=dict)

    @property
    def is_well(self) -> bool:
        """Whether no check found anything wrong."""
        return all(check.state != findings.WRONG for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for a program."""
        timings = {
            name: {"unit": unit, **asdict(median)} for name, (unit, median) in self.timings.items()
        }
        return asdict(self) | {"is_well": self.is_well, "timings": timings}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """What one rank measured; lists of seconds of each repetition."""

    facts: Facts
    unresolved: tuple[str, ...]
    num_names: int
    clock: tuple[float, float]
    matmul_s: list[float]
    copy_s: list[float]
    small_s: list[float]
    reduced_s: list[float]
    sent_s: list[tuple[int, list[float]]]
    folder: tuple[str, float, float]
    knock: tuple[str, float]


def examine_allocation(wish: Wish) -> Examination | None:
    """Examine the ranks that a launcher started; on every rank but 0 there is nothing to tell.

    Raises: `SpecError` if no launcher started this process, or we have no such machine.
    """
    place = find_here()
    if place is None:
        raise SpecError(
            "doctor --launcher",
            "no launcher started this process, or it is its only rank",
            "an allocation is examined by all its ranks (train/doctor)",
            "srun armillary doctor --launcher, or the same behind mpiexec or torchrun",
        )
    if wish.machine:
        load(wish.machine)
    any_axis = next(name for name, axis in discover().items() if axis.splits_batch)
    layout = Layout(degrees={any_axis: place.world_size})
    with (
        loopback() if place.is_on_one_node else nullcontext(),
        note_transport() as transport,
        join(layout, wish.device, seat_of(place)) as world,
    ):
        control = dist.new_group(backend="gloo")
        measured = _measure(place, world, wish, control)
        gathered: list[Any] = [None] * world.num_ranks
        dist.gather_object(measured, gathered if world.is_first else None, group=control)
        dist.barrier(group=control)
        told = transport_check(transport, world.device)
        return _judged(gathered, place, world, wish, told) if world.is_first else None


def _firsts(facts: Sequence[Facts]) -> list[int]:
    """The first rank of each node."""
    return sorted(min(one.rank for one in ranks) for ranks in findings.by_node(facts).values())


def refuse_shared_devices(facts: Sequence[Facts]) -> None:
    """Leave before ranks that share a device send anything by it: NCCL would end them untold.

    Raises: `SpecError` on every rank, with what the check of devices found.
    """
    check = findings.devices(facts)
    if check.state == findings.WRONG:
        raise SpecError(
            "doctor: devices",
            check.found,
            "every rank has a device of its own (train/doctor/findings.py)",
            check.fix,
        )


def _say(world: World, what: str) -> None:
    """Say what is being measured: where ranks cannot reach each other, it is the last line."""
    if world.is_first:
        sys.stderr.write(f"doctor: {what}\n")
        sys.stderr.flush()


def _measure(place: Place, world: World, wish: Wish, control: Any) -> _Measured:
    device, rank = world.device, world.rank
    facts: list[Any] = [None] * world.num_ranks
    _say(world, f"{world.num_ranks} ranks have met; names and clocks")
    dist.all_gather_object(facts, facts_of(place, device), group=control)
    refuse_shared_devices(facts)
    firsts = _firsts(facts)
    is_first_here = rank in firsts
    names = sorted({one.host for one in facts} | {one.node for one in facts})[:MOST_NAMES]
    sizes = timing.sizes_for(device)
    clock = timing.clock_offset_s(firsts, control)
    _say(world, "each device alone")
    alone = [timing.alone_s(device, sizes)]
    _say(world, "sums over all ranks")
    small_s = timing.all_reduce_s(device, timing.SMALL_BYTES, control)
    reduced_s = timing.all_reduce_s(device, sizes.reduced_bytes, control)
    _say(world, "pairs of ranks")
    rounds = timing.node_rounds(firsts) or [[(0, 1)], [(1, 0)]]
    sent_s = []
    for pairs in rounds:
        seconds = timing.send_s(device, sizes.sent_bytes, pairs, control)
        sent_s += [(b, seconds) for a, b in pairs if a == rank]
    _say(world, "each device alone, once more")
    alone.append(timing.alone_s(device, sizes))
    _say(world, f"folder {wish.runs}" + (" and store" if wish.store else ""))
    return _Measured(
        facts=facts[rank],
        unresolved=tuple(name for name in names if is_first_here and not _resolves(name)),
        num_names=len(names),
        clock=clock,
        matmul_s=timing.less_disturbed_s([matmul_s for matmul_s, _ in alone]),
        copy_s=timing.less_disturbed_s([copy_s for _, copy_s in alone]),
        small_s=small_s,
        reduced_s=reduced_s,
        sent_s=sent_s,
        folder=store.visit_folder(wish.runs, visits=is_first_here, control=control),
        knock=store.knock(wish.store) if wish.store and is_first_here else ("", 0.0),
    )


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def _slowest(series: Sequence[Sequence[float]]) -> list[float]:
    """The slowest rank of each repetition: a sum is done when all have it."""
    return [max(values) for values in zip(*series, strict=True)]


def _judged(
    measured: Sequence[_Measured], place: Place, world: World, wish: Wish, told: Check
) -> Examination:
    facts = [one.facts for one in measured]
    nodes = findings.by_node(facts)
    firsts = [measured[rank] for rank in _firsts(facts)]
    sizes = timing.sizes_for(world.device)
    compute = {one.facts.rank: median_of(one.matmul_s) for one in measured}
    copies = {one.facts.rank: median_of(one.copy_s) for one in measured}
    reduced = median_of(_slowest([one.reduced_s for one in measured]))
    links = {
        (facts[one.facts.rank].node, facts[to].node): median_of(seconds).inverse(sizes.sent_bytes)
        for one in measured
        for to, seconds in one.sent_s
    }
    count = world.num_ranks
    bus = reduced.inverse(2 * (count - 1) / count * sizes.reduced_bytes)
    checks = [
        findings.local_ranks(facts),
        findings.order(facts),
        findings.affinity(facts),
        findings.devices(facts),
        findings.names({one.facts.node: one.unresolved for one in firsts}, firsts[0].num_names),
        findings.clocks({one.facts.node: one.clock for one in firsts}),
        findings.network_used(_interface(place, facts[0]), facts),
        told,
        *_against_machine(wish, nodes, bus, links, sizes),
        findings.slow_ranks("devices alone", compute, facts),
        findings.slow_ranks("memory alone", copies, facts),
        findings.slow_links(links if len(nodes) > 1 else {}),
        store.folder_check(wish.runs, {one.facts.node: one.folder for one in firsts}),
        store.store_check(wish.store, {one.facts.node: one.knock for one in firsts}),
    ]
    return Examination(
        launcher=place.launcher,
        num_ranks=count,
        num_nodes=len(nodes),
        device=world.device.type,
        backend=str(dist.get_backend_config()),
        checks=tuple(checks),
        timings=_timings(measured, sizes, bus),
    )


def _timings(
    measured: Sequence[_Measured], sizes: timing.Sizes, bus: Median
) -> dict[str, tuple[str, Median]]:
    """Medians over all ranks by name, each with its unit."""
    small = median_of(_slowest([one.small_s for one in measured]))
    rate = median_of([s for one in measured for s in one.matmul_s])
    clock_hz = median_of([one.facts.clock_hz for one in measured if one.facts.clock_hz])
    return {
        "matrix product": ("flop/s", rate.inverse(2 * sizes.matmul_rows**3)),
        "copy in memory": (
            "bytes/s",
            median_of([s for one in measured for s in one.copy_s]).inverse(2 * sizes.copied_bytes),
        ),
        "clock": ("Hz", clock_hz),
        "all_reduce of 8 B": ("s", small),
        f"all_reduce of {sizes.reduced_bytes / 2**20:.0f} MiB": ("bytes/s", bus),
        f"send of {sizes.sent_bytes / 2**20:.0f} MiB": (
            "bytes/s",
            median_of([s for one in measured for _, each in one.sent_s for s in each]).inverse(
                sizes.sent_bytes
            ),
        ),
    }


def _interface(place: Place, facts: Facts) -> str:
    """The network of rank 0's node that the ranks met on."""
    named = os.environ.get("GLOO_SOCKET_IFNAME", "")
    try:
        address = socket.gethostbyname(place.master_address)
    except OSError:
        return named
    return next((name for name, (at, _) in facts.interfaces.items() if at == address), named)


def _against_machine(
    wish: Wish,
    nodes: dict[str, list[Facts]],
    bus: Median,
    links: dict[tuple[str, str], Median],
    sizes: timing.Sizes,
) -> list[Check]:
    """What was measured beside what the machine's file says of the same transfers."""
    if not wish.machine:
        found = "no machine to compare with was named with --machine"
        return [Check(name="fabric", state=findings.NOT_TRIED, found=found)]
    shape = (len(nodes), max(len(ranks) for ranks in nodes.values()))
    try:
        title, reduced, sent = expected_bytes_per_s(
            wish.machine, *shape, sizes.reduced_bytes, sizes.sent_bytes
        )
    except SpecError as error:
        return [Check(name="fabric", state=findings.DOUBTFUL, found=error.found, fix=error.fix)]
    checks = [findings.fabric(bus, reduced, title, "all_reduce of all ranks")]
    between = "between nodes" if len(nodes) > 1 else "within the node"
    if links:
        slowest = min(links.values(), key=lambda one: one.value)
        checks.append(findings.fabric(slowest, sent, title, f"send {between}, the slowest"))
    return checks
