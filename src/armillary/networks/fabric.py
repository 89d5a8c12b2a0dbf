"""All links of a machine by number: which level they belong to and what they carry."""

# Shapes: L links
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from armillary.networks.discovery import network
from armillary.networks.door import Network
from armillary.networks.joint import Joint
from armillary.spec.machine import Level, Machine

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Part:
    """The links of one level: of each unit those of its topology, and two ports of each rank.

    `ports` is the number of the first port, of all ranks out of the level and then of all into it;
    `first` that of the first link of the topology. Levels of one kind of adapter share the ports.
    """

    index: int
    level: Level
    network: Network
    joint: Joint
    is_inside: bool
    num_units: int
    ports: int
    owns_ports: bool
    first: int
    links: Array
    fraction: float


class Fabric:
    """The links of `machine`, level by level.

    `background` is the share of the links through adapters that others take.
    """

    def __init__(self, machine: Machine, background: float = 0.0) -> None:
        self.machine = machine
        self.background = background
        self.parts: list[Part] = []
        self.num_links = 0
        inner = 1
        for index, level in enumerate(machine.levels):
            self.parts.append(self._part(index, level, inner))
            inner = level.num_ranks

    def _part(self, index: int, level: Level, inner: int) -> Part:
        topology = network(level.network, f"machine.levels.{level.name}.network")
        is_inside = level.num_ranks <= self.machine.ranks_per_node or not topology.through_adapters
        joint = Joint(level=level, num_units=-(-level.num_ranks // inner), unit_ranks=inner)
        num_ranks, num_units = self.machine.num_ranks, -(-self.machine.num_ranks // level.num_ranks)
        links = topology.capacities(joint)
        last = self.parts[-1] if self.parts else None
        shares = (
            last is not None
            and not is_inside
            and not last.is_inside
            and last.level.link_bytes_per_s == level.link_bytes_per_s
        )
        ports = last.ports if last is not None and shares else self.num_links
        first = self.num_links if shares else self.num_links + 2 * num_ranks
        self.num_links = first + num_units * links.size
        return Part(
            index=index,
            level=level,
            network=topology,
            joint=joint,
            is_inside=is_inside,
            num_units=num_units,
            ports=ports,
            owns_ports=not shares,
            first=first,
            links=links,
            fraction=level.shape.get("fraction", topology.fraction),
        )

    @property
    def island(self) -> int:
        """Ranks of one unit of what adapters join: those of the outermost level inside."""
        return max((part.level.num_ranks for part in self.parts if part.is_inside), default=1)

    @cached_property
    def capacity(self) -> Array:
        """Bytes/s of every link that messages reach, of shape [L]."""
        found = np.empty(self.num_links)
        for part in self.parts:
            share = part.fraction * (1.0 if part.is_inside else 1.0 - self.background)
            if part.owns_ports:
                ports = slice(part.ports, part.ports + 2 * self.machine.num_ranks)
                found[ports] = share * part.level.link_bytes_per_s
            links = slice(part.first, part.first + part.num_units * part.links.size)
            found[links].reshape(part.num_units, part.links.size)[:] = share * part.links
        return found

    def num_links_of(self, part: Part) -> int:
        """The links of one level: its ports, if they are its own, and the rest."""
        ports = 2 * self.machine.num_ranks if part.owns_ports else 0
        return int(ports + part.num_units * part.links.size)

    def level_of(self, links: Index) -> Index:
        """The index of the level that each of `links` belongs to."""
        first = [part.ports if part.owns_ports else part.first for part in self.parts]
        return np.searchsorted(np.array(first), links, side="right") - 1

    def level_between(self, source: Index, target: Index) -> Index:
        """The level that carries messages between ranks, by index; -1 from a rank to itself."""
        found = np.full(source.shape, -1, np.int64)
        inner = 1
        for part in self.parts:
            found[source // inner != target // inner] = part.index
            inner = part.level.num_ranks
        return found
