"""What is wrong with an allocation: the ranks' facts and timings, judged. No torch, no waiting."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import median_low

from armillary.core.medians import Median
from armillary.train.doctor.facts import Facts

GOOD, DOUBTFUL, WRONG, NOT_TRIED = "good", "doubtful", "wrong", "not tried"
MISSING_PLUG_IN = 122.6 / 5.4
"""How much slower NCCL was on TCP, without a word. Source: CSCS, communication/nccl.md
(2026-08-20): GB/s of two nodes of four GH200 with and without the plug-in for the fabric."""
SLOW_NODE = 1.1
"""A device this much slower than the median of all holds every step up by as much: by a tenth, more
than like devices differ by. Source: Sinha et al., SC'22, arXiv 2208.11035: 8 % on average between
like GPUs of a cluster."""
CLOCK_S = 1.0
"""Lines of logs then stand in the wrong order. Stores refuse requests 15 minutes off (AWS:
RequestTimeTooSkewed)."""
NAMED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One question that was asked: the answer's state, what was found, and what to do about it."""

    name: str
    state: str
    found: str
    fix: str = ""


def _few(names: Iterable[object]) -> str:
    found = [str(name) for name in names]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def _count(num_names: int) -> str:
    return f"{num_names} name{'s' * (num_names != 1)}"


def by_node(facts: Sequence[Facts]) -> dict[str, list[Facts]]:
    """The ranks of each node, in order."""
    found: dict[str, list[Facts]] = defaultdict(list)
    for one in facts:
        found[one.node].append(one)
    return dict(found)


def local_ranks(facts: Sequence[Facts]) -> Check:
    """Are local ranks unique on each node, and as many as the launcher says?"""
    wrong = []
    for node, ranks in by_node(facts).items():
        counts = Counter(one.local_rank for one in ranks)
        wrong += [
            f"{node}: {count} ranks have local rank {local}"
            for local, count in counts.items()
            if count > 1
        ]
        told = {one.local_world_size for one in ranks} - {None, len(ranks)}
        wrong += [f"{node}: has {len(ranks)} ranks, the launcher says {said}" for said in told]
    if wrong:
        return Check(
            name="local ranks",
            state=WRONG,
            found=_few(wrong),
            fix="start the ranks with one launcher alone; two ranks would take one device",
        )
    sizes = Counter(len(ranks) for ranks in by_node(facts).values())
    shape = " and ".join(
        f"{count} of {size} rank{'s' * (size > 1)}" for size, count in sorted(sizes.items())
    )
    if len(sizes) > 1:
        return Check(
            name="local ranks",
            state=DOUBTFUL,
            found=f"the nodes are not alike: {shape}",
            fix="ask for ranks by node: --ntasks-per-node, -ppn",
        )
    return Check(name="local ranks", state=GOOD, found=f"unique on every node; nodes: {shape}")


def order(facts: Sequence[Facts]) -> Check:
    """Are the ranks of a node neighbours? The inner axes of a mesh take them to be."""
    names = [one.node for one in sorted(facts, key=lambda one: one.rank)]
    num_runs = 1 + sum(a != b for a, b in pairwise(names))
    if num_runs == len(set(names)):
        return Check(name="order of ranks", state=GOOD, found="ranks of a node are neighbours")
    return Check(
        name="order of ranks",
        state=WRONG,
        found=f"{_few(names[: 2 * NAMED])}: neighbours are on different nodes",
        fix="place them by node: srun --distribution=block; tensor and pipeline groups would "
        "otherwise cross the fabric",
    )


def affinity(facts: Sequence[Facts]) -> Check:
    """Has each rank cores of its own?"""
    crowded, shared, unbound = [], [], []
    for node, ranks in by_node(facts).items():
        sets = Counter(one.cores for one in ranks)
        for cores, count in sets.items():
            said = f"{node}: {count} ranks on {len(cores)} core{'s' * (len(cores) != 1)}"
            if count > len(cores):
                crowded.append(said)
            elif count > 1 and len(cores) == ranks[0].num_cores:
                unbound.append(said)
            elif count > 1:
                shared.append(said)
        users = Counter(core for cores in sets for core in cores)
        if any(count > 1 for count in users.values()):
            shared.append(f"{node}: the cores of different ranks overlap")
    fix = "bind each rank to cores of its own: srun -c N --cpu-bind=cores, mpiexec --cpu-bind"
    if crowded:
        return Check(name="cores", state=WRONG, found=_few(crowded), fix=fix)
    if shared or unbound:
        words = _few(shared or unbound) + ("" if shared else ", not bound")
        return Check(name="cores", state=DOUBTFUL, found=words, fix=fix)
    counts = sorted({len(one.cores) for one in facts})
    return Check(name="cores", state=GOOD, found=f"each rank has {_few(counts)} of its own")


def devices(facts: Sequence[Facts]) -> Check:
    """Has each rank a device of its own?"""
    if not any(one.device for one in facts):
        return Check(name="devices", state=GOOD, found="processors; no accelerator is used")
    wrong = []
    for node, ranks in by_node(facts).items():
        counts = Counter(one.device for one in ranks)
        wrong += [f"{node}: {n} ranks on {device}" for device, n in counts.items() if n > 1]
    if wrong:
        return Check(
            name="devices",
            state=WRONG,
            found=_few(wrong),
            fix="let each rank see its own: --gpus-per-task=1, or all of the node's",
        )
    names = Counter(one.device_name for one in facts)
    state = GOOD if len(names) == 1 else DOUBTFUL
    return Check(
        name="devices",
        state=state,
        found="one to each rank: " + _few(f"{count} {name}" for name, count in names.items()),
        fix="" if state == GOOD else "the slowest kind sets the pace; ask for one kind of node",
    )


def names(unresolved: Mapping[str, Sequence[str]], num_names: int) -> Check:
    """Does every node know the others by name? `unresolved` has the unknown names by node."""
    bad = {node: unknown for node, unknown in unresolved.items() if unknown}
    if not bad:
        return Check(name="names", state=GOOD, found=f"{_count(num_names)}, known on every node")
    lines = [f"{node} does not know {_few(unknown)}" for node, unknown in bad.items()]
    return Check(
        name="names",
        state=DOUBTFUL,
        found=_few(lines),
        fix="the ranks met all the same; export MASTER_ADDR with an address that all know "
        "(torch waits for a name that cannot be looked up)",
    )


def clocks(offsets_s: Mapping[str, tuple[float, float]]) -> Check:
    """Do the nodes' clocks agree? `offsets_s` has (ahead, within what) by node."""
    if len(offsets_s) < 2:
        return Check(name="clocks", state=GOOD, found="one node")
    off = {node: ahead for node, (ahead, within) in offsets_s.items() if abs(ahead) > CLOCK_S}
    worst = max(offsets_s, key=lambda node: abs(offsets_s[node][0]))
    ahead, within = offsets_s[worst]
    found = f"at most {1e3 * abs(ahead):.3g} ms apart, on {worst} (known to {1e3 * within:.2g} ms)"
    if not off:
        return Check(name="clocks", state=GOOD, found=found)
    return Check(
        name="clocks",
        state=DOUBTFUL,
        found=_few(f"{node} is {ahead:+.3g} s off" for node, ahead in off.items()),
        fix="tell the site: logs mislead, and stores refuse requests of another time",
    )


def slow_ranks(name: str, medians: Mapping[int, Median], facts: Sequence[Facts]) -> Check:
    """Is a rank surely slower than the others? Its whole interval then lies above the bound."""
    # The lower of two middle ones: of two nodes one may be slow, with half of all ranks.
    middle = median_low(one.value for one in medians.values())
    slow = {rank: one for rank, one in medians.items() if one.low > SLOW_NODE * middle}
    node = {one.rank: one.node for one in facts}
    if not slow:
        worst = max(medians, key=lambda rank: medians[rank].value)
        ratio = medians[worst].value / middle
        found = f"the slowest, rank {worst} on {node[worst]}, takes {ratio:.2f} of the median"
        return Check(name=name, state=GOOD, found=found)
    lines = [
        f"{node[rank]} (rank {rank}): {one.value / middle:.2f} times the median"
        for rank, one in sorted(slow.items(), key=lambda item: -item[1].value)
    ]
    return Check(
        name=name,
        state=WRONG if len(slow) <= len(medians) // 2 else DOUBTFUL,
        found=_few(lines),
        fix="leave the node out (srun --exclude, another allocation) and tell the site; every "
        "step waits for it",
    )


def slow_links(rates: Mapping[tuple[str, str], Median]) -> Check:
    """Is a node, or the way between two, surely slower than the others?"""
    if len(rates) < 3:
        return Check(name="links", state=NOT_TRIED, found="fewer than three nodes to compare")
    values = sorted(one.value for one in rates.values())
    middle = values[len(values) // 2]
    slow = [pair for pair, one in rates.items() if one.high < middle / SLOW_NODE]
    if not slow:
        least = values[0] / middle
        return Check(name="links", state=GOOD, found=f"the slowest has {least:.2f} of the median")
    ends = Counter(node for pair in slow for node in pair)
    blamed = [node for node, count in ends.items() if count > 1]
    found = f"slow node{'s' * (len(blamed) > 1)}: {_few(blamed)}; " if blamed else ""
    found += _few(f"{a} to {b}: {rates[a, b].value / 1e9:.3g} GB/s" for a, b in slow)
    return Check(
        name="links",
        state=WRONG,
        found=f"{found} (median {middle / 1e9:.3g} GB/s)",
        fix="leave the node out and tell the site",
    )


def fabric(measured: Median, predicted: float, machine: str, what: str) -> Check:
    """Is the fast fabric used? `measured` and `predicted` are bytes/s of the same transfer.

    On a scale of ratios the bound is half way between as predicted and a missing plug-in.
    """
    name = f"fabric: {what}"
    ratio = predicted / measured.value
    found = (
        f"{measured.value / 1e9:.3g} GB/s [{measured.low / 1e9:.3g}, {measured.high / 1e9:.3g}]; "
        f"{machine} would give {predicted / 1e9:.3g}"
    )
    if ratio < sqrt(MISSING_PLUG_IN) and predicted / measured.high < 2:
        return Check(name=name, state=GOOD, found=found)
    sure = predicted / measured.high >= sqrt(MISSING_PLUG_IN)
    return Check(
        name=name,
        state=WRONG if sure else DOUBTFUL,
        found=f"{found}: {ratio:.1f} times slower",
        fix="load the fabric's plug-in (aws-ofi-nccl, rccl-net-plugin; see NCCL_NET):"
        f" without one traffic goes over TCP, {MISSING_PLUG_IN:.0f} times slower on GH200",
    )


def network_used(used: str, facts: Sequence[Facts]) -> Check:
    """Do the ranks talk over the node's fastest network? `used` is the interface they meet on."""
    name = "interface"
    nodes = by_node(facts)
    networks = facts[0].interfaces
    if len(nodes) < 2:
        return Check(name=name, state=GOOD, found="one node: nothing leaves it")
    if used not in networks:
        return Check(
            name=name,
            state=DOUBTFUL,
            found=f"the ranks meet on {used or 'loopback'}",
            fix="export MASTER_ADDR with the fabric's name of the first node",
        )
    rates = {one: rate for one, (_, rate) in networks.items() if rate > 0}
    best = max(rates, key=lambda one: rates[one], default="")
    found = f"{used}, {rates.get(used, 0.0) / 1e9:.3g} GB/s" if used in rates else used
    if used in rates and rates[best] > rates[used]:
        return Check(
            name=name,
            state=DOUBTFUL,
            found=f"the ranks meet on {found}; {best} has {rates[best] / 1e9:.3g} GB/s",
            fix=f"export GLOO_SOCKET_IFNAME={best} NCCL_SOCKET_IFNAME={best}, and MASTER_ADDR with "
            "the address on it",
        )
    return Check(name=name, state=GOOD, found=f"the ranks meet on {found}")
