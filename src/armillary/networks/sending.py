"""What the ways of a library send, rank by rank, over groups as they lie on a machine.

Steps that follow each other are turns of a team, which is one group; what a library sends in pieces
goes over all levels in the same turn.
"""

# Shapes: G groups, N ranks of one group, M = G N members
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from armillary.core.collectives import Algorithm
from armillary.networks.blocks import Blocks, tree_parents
from armillary.networks.door import PATTERNS, Pattern
from armillary.networks.fabric import Fabric, Part
from armillary.networks.messages import NO_CROWDS, Crowds, Messages, Sending, together
from armillary.networks.middleware import Way

Array = NDArray[np.float64]
Index = NDArray[np.int64]

MOST_PAIRS = 1_000_000  # of units in a crowd's trips; of more, every q-th is taken for all


class Senders:
    """Groups that send in one way: what each of their ranks sends, as flows.

    `members` of shape [G, N] are ranks of the machine, in the order of the ring, `team` numbers
    their groups, `size` is the whole tensor, and one stands for those of so many `places`.
    `factors` holds for each level how much more than its bytes a message takes of a link there: the
    protocol's flags, and what was measured of a collective against what the topology gives.
    """

    def __init__(
        self,
        fabric: Fabric,
        members: Index,
        team: Index,
        size: float,
        factors: Array,
        places: int = 1,
    ) -> None:
        self.fabric, self.members, self.size, self.factors = fabric, members, size, factors
        self.places = places
        self.team = np.repeat(team, members.shape[1])
        self.num_ranks = float(members.shape[1])
        self.turn = 0
        self.parts: list[Sending] = []
        self.island = fabric.island
        self.inside = [part for part in fabric.parts if part.is_inside]
        self.outside = [part for part in fabric.parts if not part.is_inside]

    def blocks(self, part: Part) -> Blocks:
        """The groups in blocks of the units that a level joins."""
        return Blocks.of(self.members, part.joint.unit_ranks, part.level.num_ranks)

    def islands(self) -> Blocks:
        """The groups in blocks of what adapters join."""
        return Blocks.of(self.members, self.island, self.fabric.machine.num_ranks)

    def add(
        self,
        blocks: Blocks,
        sent: Array,
        partners: list[tuple[Index, Array]],
        pattern: Pattern,
        some: NDArray[np.bool_],
    ) -> None:
        """A flow of each of `some` members, of `sent` bytes: its partners and their shares."""
        who = np.flatnonzero(some & (sent > 0))
        number = np.full(blocks.members.size, -1)
        number[who] = np.arange(who.size)
        flows, targets, shares = [], [], []
        for target, share in partners:
            goes = np.flatnonzero((number >= 0) & (share > 0))
            flows.append(number[goes])
            targets.append(target[goes])
            shares.append(share[goes])
        flow = np.concatenate(flows)
        source, target = blocks.members[who][flow], np.concatenate(targets)
        level = self.fabric.level_between(source, target)
        # Of partners at several levels the outermost is where a measured rate counts.
        factor = np.zeros(who.size)
        np.maximum.at(factor, flow, self.factors[level])
        self._keep(
            sent[who],
            sent[who] * factor,
            self.team[who],
            Messages(
                flow=flow,
                source=source,
                target=target,
                share=np.concatenate(shares),
                level=level,
                pattern=np.full(flow.size, PATTERNS.index(pattern)),
                is_crowd=np.zeros(flow.size, np.bool_),
            ),
        )

    def _keep(
        self,
        sent: Array,
        amount: Array,
        team: Index,
        messages: Messages,
        crowds: Crowds = NO_CROWDS,
    ) -> None:
        self.parts.append(
            Sending(
                amount=amount,
                bytes=sent,
                team=team,
                turn=np.full(sent.size, self.turn),
                places=np.full(sent.size, float(self.places)),
                messages=messages,
                crowds=crowds,
            )
        )

    # ------------------------------------------------------------------------------ one level
    def ring(self, blocks: Blocks, sent: Array, is_spread: bool, pattern: Pattern) -> None:
        """Each rank to the next block, or where the topology spreads it to all of them at once."""
        count = blocks.num_blocks
        if not is_spread:
            target = blocks.facing(blocks.after(1)[blocks.block])
            self.add(blocks, sent, [(target, np.ones(sent.size))], pattern, count > 1)
            return
        partners = []
        for steps in range(1, int(count.max(initial=1))):
            target = blocks.facing(blocks.after(steps)[blocks.block])
            share = np.where(steps < count, 1.0 / np.maximum(count - 1.0, 1.0), 0.0)
            partners.append((target, share))
        if partners:
            self.add(blocks, sent, partners, pattern, count > 1)

    def trees(self, blocks: Blocks) -> None:
        """Each rank to its neighbours in two trees of blocks: half the tensor up, and half down.

        A block inside one tree with two children is a leaf of the other: it sends 2 S, where the
        closed form has the mean over all, 2 (n - 1) / n S.
        """
        count, turn = blocks.count, blocks.turn
        neighbours = []
        for parent in tree_parents(count, turn):
            has = np.flatnonzero(parent >= 0)
            above = blocks.first[has] + parent[has]
            up = np.full(turn.size, -1)
            up[has] = above
            neighbours.append(up)
            # A parent has two children at most: those below it by number and those above.
            for is_high in (False, True):
                child = np.full(turn.size, -1)
                side = turn[has] > parent[has] if is_high else turn[has] < parent[has]
                child[above[side]] = has[side]
                neighbours.append(child)
        # All send at the pace of those with the most neighbours, so that no edge runs ahead.
        most = int(np.max(sum((one >= 0).astype(np.int64) for one in neighbours)))
        partners = []
        for one in neighbours:
            share = np.where(one >= 0, 1.0 / most, 0.0)
            target = blocks.facing(np.maximum(one, 0)[blocks.block])
            partners.append((target, share[blocks.block]))
        sent = 0.5 * self.size * most / blocks.held
        self.add(blocks, sent, partners, "exchange", blocks.num_blocks > 1)

    def exchange(self, blocks: Blocks, sent: Array, splits: bool) -> None:
        """Rounds with partners 1, 2, 4 ... blocks away, a turn each.

        Halving and doubling sends half as much at twice the distance (MPICH's all-reduce; in the
        other order far links would carry most of it); where the tensor is not split each round
        sends all of it. Where the blocks are no power of two a rank's partners are those after it,
        as in a dissemination.
        """
        count = blocks.num_blocks
        rounds = np.ceil(np.log2(np.maximum(count, 1)) - 1e-9).astype(np.int64)
        is_power = (blocks.count & (blocks.count - 1)) == 0
        for nth in range(int(rounds.max(initial=0))):
            whole = np.exp2(rounds) - 1.0 if splits else rounds.astype(np.float64)
            part = (np.exp2(rounds - 1.0 - nth) if splits else 1.0) / np.maximum(whole, 1.0)
            paired = blocks.first + np.minimum(blocks.turn ^ (1 << nth), blocks.count - 1)
            other = np.where(is_power, paired, blocks.after(1 << nth))
            target = blocks.facing(other[blocks.block])
            ones = np.ones(sent.size)
            self.add(blocks, sent * part, [(target, ones)], "exchange", nth < rounds)
            self.turn += 1

    # ----------------------------------------------------------------------------- all levels
    def around(self, inside: Algorithm, between: Algorithm) -> None:
        """One ring through all ranks, whose crossings the ranks of a block share."""
        num = np.array([self.num_ranks])
        for part in self.inside:
            blocks = self.blocks(part)
            sent = inside.sent(num) * self.size / blocks.held
            self.ring(blocks, sent, part.network.is_spread, "ring")
        if self.outside:
            islands = self.islands()
            sent = between.sent(num) * self.size / islands.held
            self.ring(islands, sent, False, "ring")

    def up_and_down(self, inside: Algorithm) -> None:
        """A chain inside, and two trees of what adapters join."""
        for part in self.inside:
            blocks = self.blocks(part)
            self.ring(blocks, self._share(inside, blocks), part.network.is_spread, "exchange")
        if self.outside:
            islands = self.islands()
            if (islands.count > 1).any():
                self.trees(islands)

    def by_level(self, inside: Algorithm, between: Algorithm) -> None:
        """Level after level inside, then among what adapters join, each on its part of the tensor.

        A library knows the ranks of a node; of the levels beyond it takes nearer nodes first.
        """
        steps = [(inside, self.blocks(part), part.network.is_spread) for part in self.inside]
        if self.outside:
            steps.append((between, self.islands(), False))
        for form, blocks, is_spread in steps:
            sent = self._share(form, blocks)
            if form.name == "ring" or is_spread:
                self.ring(blocks, sent, is_spread, "ring")
                self.turn += 1
            else:
                self.exchange(blocks, sent, form.splits)

    def _share(self, form: Algorithm, blocks: Blocks) -> Array:
        """Bytes that each rank sends among the blocks of its outer unit."""
        sent = form.sent(blocks.num_blocks.astype(np.float64)) * self.size
        # A library that goes level by level divides evenly where units are not full.
        num = np.bincount(blocks.first, blocks.size, blocks.first.max() + 1)
        held = (num[blocks.first] / blocks.count)[blocks.block]
        return np.asarray(sent / held if form.splits else sent)

    def pairs(self, form: Algorithm, is_closed: bool) -> None:
        """Each rank to the next of its group, in the order given; from the last if closed."""
        blocks = Blocks.of(np.sort(self.members, axis=1), 1, self.fabric.machine.num_ranks)
        order = self.members.reshape(-1)
        target = np.roll(self.members, -1, axis=1).reshape(-1)
        goes = np.ones(self.members.shape, np.bool_)
        goes[:, -1] = is_closed
        sent = np.broadcast_to(form.sent(np.array([self.num_ranks])) * self.size, order.shape)
        unsorted = Blocks(**{**_fields(blocks), "members": order})
        self.add(unsorted, sent, [(target, np.ones(order.size))], "pair", goes.reshape(-1))

    def at_once(self, form: Algorithm) -> None:
        """Every rank to every other: each level carries its share of the partners."""
        whole = float(form.sent(np.array([self.num_ranks]))[0]) * self.size
        others = max(self.num_ranks - 1.0, 1.0)
        for part in self.inside:
            blocks = self.blocks(part)
            num = np.bincount(blocks.first, blocks.size, blocks.first.max() + 1)
            around = (num[blocks.first] - blocks.size)[blocks.block]
            partners = []
            for steps in range(1, int(blocks.count.max())):
                other = blocks.after(steps)[blocks.block]
                share = np.where(steps < blocks.num_blocks, blocks.size[other], 0)
                partners.append((blocks.facing(other), share / np.maximum(around, 1.0)))
            if partners:
                sent = np.asarray(whole * around / others, np.float64)
                self.add(blocks, sent, partners, "all", around > 0)
        if self.outside:
            self._crowd(whole / others)

    def _crowd(self, each: float) -> None:
        """What goes through adapters in an all-to-all: `each` bytes to each other rank."""
        islands = self.islands()
        flat, held = islands.members, islands.held
        beyond = self.num_ranks - held
        flow = np.arange(flat.size)
        messages: list[tuple[Index, Array, Index]] = []
        crowds: list[tuple[Blocks, Part, tuple[Index, Index, Array]]] = []
        for part in self.outside:
            blocks = self.blocks(part)
            num = np.bincount(blocks.first, blocks.size, blocks.first.max() + 1)
            around = (num[blocks.first] - blocks.size)[blocks.block]
            share = around / np.maximum(beyond, 1.0)
            messages.append((flow, share, np.full(flow.size, part.index)))
            if part.links.size:
                base = sum(some.start.size for some, _, _ in crowds)
                crowds.append((blocks, part, (flow, base + blocks.block, share)))
        rows, shares, levels = (np.concatenate(some) for some in zip(*messages, strict=True))
        sent = np.asarray(each * beyond, np.float64)
        self._keep(
            sent,
            sent * self.factors[self.outside[0].index],
            self.team,
            Messages(
                flow=rows,
                source=flat[rows],
                target=flat[rows],
                share=shares,
                level=levels,
                pattern=np.full(rows.size, PATTERNS.index("all")),
                is_crowd=np.ones(rows.size, np.bool_),
            ),
            _crowds(crowds),
        )


def _fields(blocks: Blocks) -> dict[str, Index]:
    return {name: getattr(blocks, name) for name in Blocks.__dataclass_fields__}


def _crowds(found: list[tuple[Blocks, Part, tuple[Index, Index, Array]]]) -> Crowds:
    """The trips of the crowds of some levels, each a block to the others of its outer unit."""
    if not found:
        return NO_CROWDS
    parts, base = [], 0
    for blocks, part, _ in found:
        parts.append(_trips(blocks, part, base))
        base += blocks.start.size
    joined = (np.concatenate(some) for some in zip(*parts, strict=True))
    flow, crowd, share = (
        np.concatenate(some) for some in zip(*(one[2] for one in found), strict=True)
    )
    of, level, unit, source, target, part_of = joined
    return Crowds(
        flow=flow,
        crowd=crowd,
        part=share,
        of=of,
        level=level,
        unit=unit,
        source=source,
        target=target,
        share=part_of,
    )


def _trips(blocks: Blocks, part: Part, base: int) -> tuple[Index | Array, ...]:
    """From each block to the others; of very many every q-th stands for those around it."""
    others = blocks.count - 1
    skip = max(int(others.sum()) // MOST_PAIRS, 1)
    num = -(-others // skip)
    of = np.repeat(np.arange(others.size), num)
    nth = (np.arange(of.size) - np.repeat(np.cumsum(num) - num, num)) * skip
    steps = 1 + (nth + of % skip) % np.maximum(others[of], 1)
    target = blocks.first[of] + (blocks.turn[of] + steps) % blocks.count[of]
    weight = blocks.size[target].astype(np.float64)
    total = np.bincount(of, weight, others.size)
    size, inner = part.level.num_ranks, part.joint.unit_ranks
    at = blocks.members[blocks.start]
    return (
        base + of,
        np.full(of.size, part.index),
        (at // size)[of],
        (at % size // inner)[of],
        (at % size // inner)[target],
        weight / np.maximum(total, 1.0)[of],
    )


def sending(senders: Senders, way: Way, is_closed: bool = True) -> Sending:
    """All that `senders` send in `way`."""
    flows: dict[str, Callable[[], None]] = {
        "around": lambda: senders.around(way.inside, way.between),
        "up and down": lambda: senders.up_and_down(way.inside),
        "by level": lambda: senders.by_level(way.inside, way.between),
        "at once": lambda: senders.at_once(way.between),
        "farthest": lambda: senders.pairs(way.between, is_closed),
    }
    flows[way.flow]()
    return together(senders.parts)
