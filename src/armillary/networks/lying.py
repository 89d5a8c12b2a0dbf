"""How the groups of a burst lie on a machine, which way each takes, and what its steps cost."""

# Shapes: G groups of one burst, N ranks of a group, K classes of groups that lie alike
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.networks.burst import Burst, Ranks
from armillary.networks.door import Pattern
from armillary.networks.fabric import Fabric
from armillary.networks.fitted import FitTable, sent_by_rank, tables_of
from armillary.networks.folding import unfolded
from armillary.networks.messages import Sending
from armillary.networks.middleware import Way
from armillary.networks.price import ways_of
from armillary.networks.reach import Reach, reaches
from armillary.networks.sending import Senders, sending
from armillary.networks.ways import Parts, parts
from armillary.spec import SpecError

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def group_members(burst: Burst, num_ranks: int) -> Ranks:
    """The job's ranks of each group of `burst`, of shape [G, N].

    Raises: `SpecError` where the spans do not divide the job into whole groups.
    """
    if burst.members is not None:
        found = np.atleast_2d(np.asarray(burst.members, np.int64))
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < num_ranks:
            raise SpecError(
                "burst.members",
                f"ranks {int(found.min())} to {int(found.max())}",
                f"the job has ranks 0 to {num_ranks - 1}",
                "name ranks of the job",
            )
        return found
    first = np.ones(num_ranks, np.bool_)
    ranks = np.arange(num_ranks)
    members = np.zeros(1, np.int64)
    for degree, stride in sorted(burst.spans, key=lambda span: span[1]):
        if num_ranks % (degree * stride):
            raise SpecError(
                "burst.spans",
                f"degree {degree} with stride {stride}",
                f"{degree * stride} ranks divide the job's {num_ranks}",
                "give the degrees of the job's mesh, or members",
            )
        first &= ranks // stride % degree == 0
        members = (np.arange(degree)[:, None] * stride + members[None, :]).reshape(-1)
    return ranks[first][:, None] + members[None, :]


@dataclass(frozen=True, kw_only=True)
class Class:
    """Groups that lie alike: their numbers in the burst, and either a fit or a way with costs.

    `row` says how many units of each level one of them touches.
    """

    groups: Index
    row: Index
    table: FitTable | None
    way: Way
    costs: Parts | None


class Lying:
    """The groups of one burst on a machine; `slots` of shape [G, N] are ranks of the machine.

    `team` are the numbers of its groups among all, and `closed_s` what the closed form says of
    each, of shape [G].
    """

    def __init__(self, fabric: Fabric, burst: Burst, slots: Ranks, first_team: int) -> None:
        self.fabric, self.burst, self.slots = fabric, burst, slots
        self.num_groups, self.num_ranks = slots.shape
        self.team = slice(first_team, first_team + self.num_groups)
        self.fold = unfolded(self.num_groups)
        self.closed_s = np.zeros(self.num_groups)
        self.classes: list[Class] = []
        self.ring = np.sort(slots, axis=1)
        machine = fabric.machine
        ways = ways_of(machine, burst.collective)
        if self.num_ranks < 2 or burst.bytes <= 0 or not machine.levels:
            return
        self.tables = tables_of(machine.levels, burst.collective)
        touched = self._touched()
        key = touched @ (self.num_ranks + 1) ** np.arange(touched.shape[1], dtype=np.float64)
        _, first, groups = np.unique(key, return_index=True, return_inverse=True)
        rows = touched[first]
        way, costs = self._way(ways, rows)
        for number, row in enumerate(rows):
            held = [t for t, units in zip(self.tables, row, strict=True) if t and units == 1]
            of = np.flatnonzero(groups == number)
            cost = None if held else costs[number]
            self.classes.append(
                Class(groups=of, row=row, table=held[0] if held else None, way=way, costs=cost)
            )
            self.closed_s[of] = self._measured(held[0]) if held else cost.seconds  # type: ignore

    def _touched(self) -> Index:
        """How many units of each level each group touches, of shape [G, levels]."""
        columns = []
        for part in self.fabric.parts:
            changes = np.diff(self.ring // part.level.num_ranks, axis=1) != 0
            columns.append(1 + changes.sum(axis=1))
        return np.stack(columns, axis=1)

    def _way(self, ways: tuple[Way, ...], rows: Index) -> tuple[Way, dict[int, Parts]]:
        """The fastest way for the class of groups that it serves worst, and its costs by class."""
        best: tuple[float, Way, dict[int, Parts]] | None = None
        lying = {number: self._reaches(row) for number, row in enumerate(rows)}
        size, ranks = np.array([float(self.burst.bytes)]), np.array([float(self.num_ranks)])
        for way in ways:
            costs = {number: parts(way, some, ranks, size) for number, some in lying.items()}
            worst = max(float(one.seconds[0]) for one in costs.values())
            if best is None or worst < best[0]:
                best = (worst, way, costs)
        assert best is not None
        return best[1], best[2]

    def _reaches(self, row: Index) -> list[Reach]:
        touched = [np.array([float(units)]) for units in row]
        ranks = np.array([float(self.num_ranks)])
        return reaches(self.fabric.machine, touched, self.tables, ranks)

    def _measured(self, table: FitTable) -> float:
        ranks = np.array([float(self.num_ranks)])
        sent = sent_by_rank(self.burst.collective, ranks) * self.burst.bytes
        return float(table.seconds(ranks, sent)[0])

    # ---------------------------------------------------------------------------------- flows
    def sending(self) -> list[Sending]:
        """What the groups that are played send, by class."""
        found = []
        played = self.fold.played
        is_pair = self.burst.collective in ("send", "batch_isend_irecv")
        members = self.slots if is_pair else self.ring
        for one in self.classes:
            rows = np.intersect1d(one.groups, played, assume_unique=True)
            if not rows.size:
                continue
            senders = Senders(
                self.fabric,
                members[rows],
                self.team.start + rows,
                float(self.burst.bytes),
                self._factors(one),
                self.fold.num_places,
            )
            is_closed = self.burst.collective != "send"
            found.append(sending(senders, one.way, is_closed))
        return found

    def stands_for(self) -> Array:
        """For how many groups each of the burst's is played, of shape [G]."""
        return np.bincount(self.fold.stand_in, minlength=self.num_groups).astype(np.float64)

    def _factors(self, one: Class) -> Array:
        """How much more than its bytes a message takes of a link, by level."""
        ranks = np.array([float(self.num_ranks)])
        if one.table is not None:
            sent = float(one.way.between.sent(ranks)[0])
            measured = float(sent_by_rank(self.burst.collective, ranks)[0])
            factor = self._link_rate(one.table.level.name) / float(one.table.bytes_per_s(ranks)[0])
            return np.full(len(self.fabric.parts), factor * measured / sent)
        found = np.full(len(self.fabric.parts), 1.0 / one.way.protocol.fraction)
        pattern: Pattern = one.way.pattern
        for reach in self._reaches(one.row):
            if reach.table is not None and pattern != "pair":
                name = reach.level.name
                index = next(p.index for p in self.fabric.parts if p.level.name == name)
                found[index] *= self._link_rate(name) / float(reach.bytes_per_s(pattern)[0])
        return found

    def _link_rate(self, name: str) -> float:
        """Bytes/s of a rank's port into a level."""
        part = next(part for part in self.fabric.parts if part.level.name == name)
        return part.level.link_bytes_per_s * part.fraction

    def seconds(self, wire_s: Array) -> Array:
        """Seconds of each group whose last byte arrives after `wire_s`, both of shape [G].

        Of groups that others stand for, theirs.
        """
        wire_s = wire_s[self.fold.stand_in]
        found = np.zeros(self.num_groups)
        for one in self.classes:
            wire = wire_s[one.groups]
            if one.costs is not None:
                found[one.groups] = one.costs.with_wire(wire)
                continue
            assert one.table is not None
            ranks = np.array([float(self.num_ranks)])
            sent = sent_by_rank(self.burst.collective, ranks) * self.burst.bytes
            start = float(one.table.seconds(ranks, np.zeros(1))[0])
            alone = float((sent / one.table.bytes_per_s(ranks))[0])
            pieces = float(one.table.seconds(ranks, sent)[0]) - start - alone
            found[one.groups] = start + wire + pieces * np.sqrt(wire / alone)
        return found
