"""A machine as numbers: its devices, what links them, its store, failures and price.

"Rank" is what torch calls one device: a GPU, a tile, a graphics compute die, a chip, or a process
on a CPU. Rates are bytes a second in one direction, capacities bytes, times seconds. A number that
is 0 is unknown, and `Machine.unknown` says where it could come from; a number that is not known
but that a plan cannot do without is a stated bound, and `Machine.unknown` says that too.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar

from armillary.spec.document import Document, nearest
from armillary.spec.error import SpecError

DTYPES = ("float64", "float32", "tf32", "bfloat16", "float16", "float8", "float4")


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency(Document):
    """What a device reaches of its peaks, as a function of size.

    A product [rows x inner] @ [inner x columns] of element size e, with the peak P and the memory
    rate W of the device, takes `matmul_start_s` + max(compute, memory) seconds, where
    compute = 2 rows columns inner / (P `matmul_fraction`)
              (1 + `half_rows`/rows) (1 + `half_columns`/columns) (1 + `half_inner`/inner),
    memory = e (rows inner + inner columns + rows columns) / (W `matmul_memory_fraction`).
    A size equal to its `half_` runs at half the speed of a large one.

    `attention_fraction` is the share of P that a fused attention reaches, `stream_fraction` the
    share of W that an operation bound by memory reaches, `launch_s` what the host needs to launch
    one kernel, and `relative_error` the mean absolute relative error of times so computed.

    `convolution_fraction` is the share of P that a convolution of many channels reaches, and one of
    `half_channels` runs at half that speed; `scan_step_s` is the least time of one step of a
    recurrent layer, however little it computes. Where they are not given they are the means over
    the devices of published runs of such models (docs/plan.md).
    """

    what: ClassVar[str] = "efficiency"

    matmul_start_s: float
    matmul_fraction: float
    matmul_memory_fraction: float
    half_rows: float
    half_columns: float
    half_inner: float
    attention_fraction: float
    stream_fraction: float
    launch_s: float
    source: str
    relative_error: float
    convolution_fraction: float = 0.6
    half_channels: float = 60.0
    scan_step_s: float = 7e-5

    def __post_init__(self) -> None:
        _not_negative(self)
        for name in (
            "convolution_fraction",
            "matmul_fraction",
            "matmul_memory_fraction",
            "attention_fraction",
            "stream_fraction",
        ):
            if not 0 < getattr(self, name) <= 1:
                raise SpecError(
                    f"efficiency.{name}",
                    f"{getattr(self, name)}",
                    "a share of a peak is above 0 and at most 1",
                    "give measured rate / peak rate",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Device(Document):
    """One rank's device: peaks, memory, power, and what it reaches of the peaks.

    `peak_flops_per_s` holds dense peaks by dtype (`DTYPES`); a dtype that is missing has no units
    of its own, or no source. `torch_device` is "cuda", "xpu", "xla", "cpu" or "" (none), `backend`
    the name of its collectives in torch. `memory_bytes` is what torch can see; `num_units` counts
    streaming multiprocessors, compute units, Xe cores or cores. `power_w` is the most it draws, of
    a package shared by ranks their share; `idle_power_w` what it draws at rest. `efficiencies`
    holds those of other dtypes than bfloat16 or float16 where they were measured.
    """

    what: ClassVar[str] = "device"

    name: str
    title: str = ""
    vendor: str = ""
    torch_device: str = ""
    backend: str = ""
    peak_flops_per_s: Mapping[str, float]
    memory_bytes: int
    memory_bytes_per_s: float
    num_units: int = 0
    power_w: float = 0.0
    idle_power_w: float = 0.0
    efficiency: Efficiency
    efficiencies: Mapping[str, Efficiency] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _not_negative(self)
        for name in (*self.peak_flops_per_s, *self.efficiencies):
            if name not in DTYPES:
                raise SpecError(
                    f"device.peak_flops_per_s.{name}",
                    "unknown dtype",
                    f"the dtypes are {', '.join(DTYPES)}",
                    nearest(name, DTYPES),
                )

    def peak(self, dtype: str) -> float:
        """The dense peak of `dtype` in flop/s.

        Raises: `SpecError` where it is not known.
        """
        found = self.peak_flops_per_s.get(dtype, 0.0)
        if found <= 0:
            known = [name for name, rate in self.peak_flops_per_s.items() if rate > 0]
            raise SpecError(
                f"device.peak_flops_per_s.{dtype}",
                f"not known of {self.name}",
                "a time is computed from a peak that has a source",
                f"plan in {', '.join(known) or 'no dtype'}, or state the peak in a machine file",
            )
        return found

    def efficiency_of(self, dtype: str) -> Efficiency:
        """What the device reaches in `dtype`: measured so, or else that of bfloat16."""
        return self.efficiencies.get(dtype, self.efficiency)


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectiveFit(Document):
    """Seconds of a measured collective over `degree` ranks of one unit of a level.

    t = `start_s` + f S / `bytes_per_s` + `root_s_per_sqrt_byte` sqrt(f S), where S is the size of
    the whole tensor in bytes and f S what one rank sends: f = 2 (n - 1) / n for an all_reduce,
    (n - 1) / n^2 for an all-to-all, (n - 1) / n for a gather or a reduce-scatter.
    """

    what: ClassVar[str] = "collective fit"

    degree: int
    start_s: float
    bytes_per_s: float
    root_s_per_sqrt_byte: float = 0.0
    source: str
    relative_error: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Level(Document):
    """What links the ranks of one unit of a level that share no unit of the level below.

    `name` is "package", "node", "rack", "group" or "machine"; `num_ranks` counts the ranks of one
    unit; `network` names the file in `networks/` that knows the topology.

    `link_bytes_per_s` is what one rank can send through this level, and at the same time receive,
    all its links together, when all ranks of its node do so at once: rates of shared adapters are
    divided already. `latency_s` is the time of the smallest message from rank to rank across it.
    `taper` is how many times less than `link_bytes_per_s` a rank gets when every rank sends across
    this level at once; 1 where nothing is oversubscribed. `shape` holds the further numbers that
    the topology asks for, each with its unit in its name, such as "pair_bytes_per_s": what two
    ranks alone get where each pair has links of its own. `collectives` holds fits of measured
    collectives by torch's name, in order of their degree.
    """

    what: ClassVar[str] = "level"

    name: str
    num_ranks: int
    network: str
    link_bytes_per_s: float
    latency_s: float
    taper: float = 1.0
    shape: Mapping[str, float] = field(default_factory=dict)
    collectives: Mapping[str, tuple[CollectiveFit, ...]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        _not_negative(self)
        _at_least(f"levels.{self.name}.num_ranks", self.num_ranks, 1)
        _at_least(f"levels.{self.name}.taper", self.taper, 1)
        for name in ("link_bytes_per_s", "latency_s"):
            if getattr(self, name) <= 0:
                raise SpecError(
                    f"levels.{self.name}.{name}",
                    "0, which is unknown",
                    "the time of a transfer needs it",
                    "give the number and its source, or a stated bound",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Host(Document):
    """What one rank has of its node's host: memory in bytes, cores, and the link to the device.

    `link_bytes_per_s` is per direction, with all ranks of the node at it.
    """

    what: ClassVar[str] = "host"

    memory_bytes: int = 0
    num_cores: int = 0
    link_bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage(Document):
    """The shared store: rates of the whole system and of one node, in bytes/s.

    `node_write_bytes_per_s` and `node_read_bytes_per_s` are those of a node's own disks.
    """

    what: ClassVar[str] = "storage"

    name: str = ""
    read_bytes_per_s: float = 0.0
    write_bytes_per_s: float = 0.0
    node_read_bytes_per_s: float = 0.0
    node_write_bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures(Document):
    """How often a job is interrupted: hours of one rank between interruptions, and to restart.

    A job of n ranks is interrupted every `device_hours_between` / n hours. `restart_s` is the time
    from an interruption to the first step of the restarted job, without reading the checkpoint.
    """

    what: ClassVar[str] = "failures"

    device_hours_between: float = 0.0
    restart_s: float = 0.0

    def __post_init__(self) -> None:
        _not_negative(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Price(Document):
    """What use costs: dollars of one rank's hour, dollars of a kilowatt hour.

    `unit` says in what the site charges, such as "node-hour".
    """

    what: ClassVar[str] = "price"

    usd_per_device_hour: float = 0.0
    usd_per_kwh: float = 0.0
    unit: str = ""

    def __post_init__(self) -> None:
        _not_negative(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine(Document):
    """A machine: equal nodes of equal devices, what links them from the inside out, its costs.

    Ranks are numbered along the levels: those of a package are neighbours, then those of a node,
    and so on. `levels` is innermost first; the last one's unit is the whole machine. Where a
    machine has one rank, `levels` is empty.

    `sources` names for every number the page, paper or measurement it comes from, by its path,
    such as "device.memory_bytes" or "levels.node.link_bytes_per_s". `unknown` names those that are
    not known: where each could come from and, if a plan needs it, the bound that stands in its
    place and on which side it errs.
    """

    what: ClassVar[str] = "machine"

    name: str
    title: str = ""
    site: str = ""
    status: str = ""
    num_nodes: int
    ranks_per_node: int
    device: Device
    levels: tuple[Level, ...]
    nics_per_node: int = 0
    nic_bytes_per_s: float = 0.0
    host: Host = field(default_factory=Host)
    storage: Storage = field(default_factory=Storage)
    failures: Failures = field(default_factory=Failures)
    price: Price = field(default_factory=Price)
    node_power_w: float = 0.0
    pue: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _not_negative(self)
        for name in ("num_nodes", "ranks_per_node"):
            _at_least(f"machine.{name}", getattr(self, name), 1)
        _check_levels(self)

    @property
    def num_ranks(self) -> int:
        """The ranks of the whole machine."""
        return self.num_nodes * self.ranks_per_node

    @property
    def sha256(self) -> str:
        """A hash of all its numbers."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def level(self, name: str) -> Level | None:
        """The level called `name`, or none."""
        return next((level for level in self.levels if level.name == name), None)


def _check_levels(machine: Machine) -> None:
    """Levels nest: each holds whole units of the one below; the last one is the machine.

    Only the machine itself may end in a unit that is not full.
    """
    inner = 1
    for index, level in enumerate(machine.levels):
        is_last = index == len(machine.levels) - 1
        grows = level.num_ranks > inner
        if not grows or (level.num_ranks % inner and not is_last):
            raise SpecError(
                f"machine.levels.{level.name}.num_ranks",
                f"{level.num_ranks}, and {inner} in the level below",
                "a level holds whole units of the level below, more than one",
                "order the levels from the inside out and give ranks of one unit",
            )
        inner = level.num_ranks
    if inner != machine.num_ranks:
        raise SpecError(
            "machine.levels",
            f"{inner} ranks in the outermost level",
            f"the outermost level is the machine: {machine.num_nodes} nodes of "
            f"{machine.ranks_per_node} ranks are {machine.num_ranks}",
            "give the last level that many, or mend num_nodes or ranks_per_node",
        )
    names = [level.name for level in machine.levels]
    if len(set(names)) != len(names):
        raise SpecError(
            "machine.levels", f"{names}", "a level's name stands once", "rename one of them"
        )


def _not_negative(document: Document) -> None:
    """Raise `SpecError` on a number below 0, or one that is infinite or none."""
    for one in fields(document):  # type: ignore[arg-type]
        value = getattr(document, one.name)
        found = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, number in found:
            if isinstance(number, (int, float)) and not 0 <= number < float("inf"):
                raise SpecError(
                    ".".join(filter(None, (document.what, one.name, key))),
                    f"{number}",
                    "a number of a machine is finite and not negative; 0 says unknown",
                    "give the number as its source has it",
                )


def _at_least(where: str, value: float, least: int) -> None:
    if value < least:
        raise SpecError(where, f"{value}", f"the value is at least {least}", "give the real number")
