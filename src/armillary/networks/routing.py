"""The links that flows take through all levels of a machine."""

# Shapes: F flows, T trips of flows, L links
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.core.flows import Routes, Table
from armillary.networks.door import PATTERNS
from armillary.networks.fabric import Fabric, Part
from armillary.networks.joint import Trips, Ways
from armillary.networks.messages import Sending

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Entries = tuple[Index, Index, Array]


def routes(fabric: Fabric, sending: Sending, seed: int = 0) -> Routes:
    """What each flow of `sending` takes of the links of `fabric`.

    A trip takes the port out of its rank and the one into the other, the links of the level between
    them, and, through a level below, the links to and from its border.
    """
    direct = [entries for part in fabric.parts for entries in _ports(fabric, part, sending)]
    offered = _offered(fabric, sending, direct)
    crowds = _crowds_offer(sending, offered)
    bundles: list[Entries] = []
    num_bundles = sending.num_crowds
    shared = sending.crowds
    of_all = shared.part * sending.places[shared.flow]
    direct.append((shared.flow, fabric.num_links + shared.crowd, of_all))
    for part in fabric.parts:
        direct += _borders(fabric, part, sending)
        if part.links.size:
            crossing = _Crossing(fabric, part, sending, offered, crowds, seed, num_bundles)
            direct += crossing.direct
            bundles += crossing.bundles
            num_bundles = crossing.num_bundles
    return Routes(
        num_flows=sending.num_flows,
        num_links=fabric.num_links,
        direct=_table(direct),
        bundles=_table(bundles),
        num_bundles=num_bundles,
    )


def _table(entries: list[Entries]) -> Table:
    return Table.of(*_joined(entries))


def _joined(entries: list[Entries]) -> Entries:
    """All entries that carry something."""
    some = [one for one in entries if one[0].size]
    if not some:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    row, column, share = (np.concatenate(parts) for parts in zip(*some, strict=True))
    carries = share > 0
    if not carries.all():
        row, column, share = row[carries], column[carries], share[carries]
    return row, column, share


def _ports(fabric: Fabric, part: Part, sending: Sending) -> list[Entries]:
    """The ports that trips take at one level: out of the source, into the target."""
    sent = sending.messages
    at = np.flatnonzero(sent.level == part.index)
    into = part.ports + fabric.machine.num_ranks + sent.target[at]
    share = sent.share[at]
    return [(sent.flow[at], part.ports + sent.source[at], share), (sent.flow[at], into, share)]


def _borders(fabric: Fabric, part: Part, sending: Sending) -> list[Entries]:
    """The links of one level on which trips to a level above leave a unit and enter another."""
    sent = sending.messages
    if part.is_inside or not part.links.size:
        return []
    at = np.flatnonzero(sent.level > part.index)
    found = []
    for ranks, is_outward in ((sent.source[at], True), (sent.target[at], False)):
        unit = ranks // part.level.num_ranks
        below = ranks % part.level.num_ranks // part.joint.unit_ranks
        link = part.network.border(part.joint, below, is_outward)
        some = link >= 0
        number = part.first + unit * part.links.size + link
        share = sent.share[at] * sending.places[sent.flow[at]]
        found.append((sent.flow[at][some], number[some], share[some]))
    return found


def _offered(fabric: Fabric, sending: Sending, ports: list[Entries]) -> Array:
    """Bytes/s of each flow if only the ports held up those of its turn, all of them equally."""
    row, column, share = _joined(ports)
    used = np.zeros(fabric.num_links, np.bool_)
    used[column] = True
    number = np.cumsum(used) - 1
    capacity, column = fabric.capacity[used], number[column]
    if sending.turn.any():  # ports of one turn after those of another
        column += sending.turn[row] * capacity.size
        capacity = np.tile(capacity, int(sending.turn.max()) + 1)
    load = np.bincount(column, share, capacity.size)
    level = np.full(capacity.size, np.inf)
    np.divide(capacity, load, out=level, where=load > 0)
    found = np.full(sending.num_flows, np.inf)
    np.minimum.at(found, row, level[column])
    return np.where(np.isfinite(found), found, 0.0)


def _crowds_offer(sending: Sending, offered: Array) -> Array:
    """Bytes/s that each crowd offers."""
    shared = sending.crowds
    offers = shared.part * (offered * sending.places)[shared.flow]
    return np.asarray(np.bincount(shared.crowd, offers, sending.num_crowds), np.float64)


@dataclass
class _Crossing:
    """The links of one level that trips and crowds take: what they add to the routes."""

    direct: list[Entries]
    bundles: list[Entries]
    num_bundles: int

    def __init__(
        self,
        fabric: Fabric,
        part: Part,
        sending: Sending,
        offered: Array,
        crowds: Array,
        seed: int,
        num_bundles: int,
    ) -> None:
        sent, shared = sending.messages, sending.crowds
        self.direct, self.bundles, self.num_bundles = [], [], num_bundles
        at = np.flatnonzero((sent.level == part.index) & ~sent.is_crowd)
        of = np.flatnonzero(shared.level == part.index)
        if not at.size + of.size:
            return
        source, target = sent.source[at], sent.target[at]
        size, inner = part.level.num_ranks, part.joint.unit_ranks
        # Trips of different turns do not meet: each turn has units of its own for those who route.
        turns = sending.turn[sent.flow[at]] * part.num_units
        trips = Trips(
            unit=np.concatenate([source // size + turns, shared.unit[of]]),
            source=np.concatenate([source % size // inner, shared.source[of]]),
            target=np.concatenate([target % size // inner, shared.target[of]]),
            rank=np.concatenate([source % inner, np.zeros_like(of)]),
            offered=np.concatenate(
                [
                    (offered * sending.places)[sent.flow[at]] * sent.share[at],
                    crowds[shared.of[of]] * shared.share[of],
                ]
            ),
            pattern=np.concatenate([sent.pattern[at], np.full(of.size, PATTERNS.index("all"))]),
            seed=seed,
        )
        ways = part.network.ways(part.joint, trips)
        flow, crowd = sent.flow[at], shared.of[of]
        places = sending.places[sent.flow[at]]
        share = np.concatenate([sent.share[at] * places, shared.share[of]])
        if ways.bundle is None:
            unit = trips.unit[ways.trip] % part.num_units
            link = part.first + unit * part.links.size + ways.link
            self._add(ways.trip, link, ways.share * share[ways.trip], flow, crowd)
        else:
            self._add_bundles(fabric, part, trips, ways, share, flow, crowd)

    def _add(self, trip: Index, link: Index, share: Array, flow: Index, crowd: Index) -> None:
        """Links of flows, and of crowds as bundles of their own."""
        ours = trip < flow.size
        self.direct.append((flow[trip[ours]], link[ours], share[ours]))
        theirs = trip[~ours] - flow.size
        self.bundles.append((crowd[theirs], link[~ours], share[~ours]))

    def _add_bundles(
        self,
        fabric: Fabric,
        part: Part,
        trips: Trips,
        ways: Ways,
        share: Array,
        flow: Index,
        crowd: Index,
    ) -> None:
        """Ways that trips share become bundles; a crowd takes the links of its trips' bundles."""
        assert ways.bundle is not None
        num = int(ways.bundle.max(initial=-1)) + 1
        unit = np.zeros(num, np.int64)
        unit[ways.bundle] = trips.unit
        link = part.first + unit[ways.trip] % part.num_units * part.links.size + ways.link
        self.bundles.append((self.num_bundles + ways.trip, link, ways.share))
        ours = ways.bundle[: flow.size]
        column = fabric.num_links + self.num_bundles + ours
        self.direct.append((flow, column, share[: flow.size]))
        self.num_bundles += num
        theirs = np.arange(flow.size, trips.source.size)
        if theirs.size:
            trip, entry = _entries_of(ways, ways.bundle[theirs], num)
            some = share[flow.size :][trip] * ways.share[entry]
            self.bundles.append((crowd[trip], link[entry], some))


def _entries_of(ways: Ways, wanted: Index, num: int) -> tuple[Index, Index]:
    """For each of the `wanted` rows of `ways` its entries: which one wants it, and which it is."""
    order = np.argsort(ways.trip, kind="stable")
    counts = np.bincount(ways.trip, minlength=num)
    starts = np.cumsum(counts) - counts
    each = counts[wanted]
    who = np.repeat(np.arange(wanted.size), each)
    nth = np.arange(who.size) - np.repeat(np.cumsum(each) - each, each)
    return who, order[starts[wanted][who] + nth]
