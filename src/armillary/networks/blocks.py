"""Groups of ranks cut into blocks by the units of a level, and the partners of a rank in others."""

# Shapes: G groups, N ranks of one group, M = G N members, B blocks
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Members (int64[M], ranks of the machine in order) in blocks of one `inner` unit each.

    `block` and `place` say in which block and where in it a member is, of shape [M]; `start` and
    `size` of each block, and `first`, `turn` and `count`: the first block of those in the same
    `outer` unit of the same group, which of them it is, and how many these are, of shape [B].
    """

    members: Index
    block: Index
    place: Index
    start: Index
    size: Index
    first: Index
    turn: Index
    count: Index

    @staticmethod
    def of(members: Index, inner: int, outer: int) -> "Blocks":
        """The blocks of `members`, of shape [G, N] and in order along the last."""
        flat = members.reshape(-1)
        is_start = np.ones(members.shape, np.bool_)
        is_start[:, 1:] = np.diff(members // inner, axis=1) != 0
        is_first = np.ones(members.shape, np.bool_)
        is_first[:, 1:] = np.diff(members // outer, axis=1) != 0
        start = np.flatnonzero(is_start.reshape(-1))
        block = np.cumsum(is_start.reshape(-1)) - 1
        size = np.diff(np.append(start, flat.size))
        family = np.cumsum(is_first.reshape(-1)[start]) - 1
        firsts = np.flatnonzero(is_first.reshape(-1)[start])
        count = np.diff(np.append(firsts, start.size))
        return Blocks(
            members=flat,
            block=block,
            place=np.arange(flat.size) - start[block],
            start=start,
            size=size,
            first=firsts[family],
            turn=np.arange(start.size) - firsts[family],
            count=count[family],
        )

    @property
    def held(self) -> Index:
        """Members in the block of each member, of shape [M]."""
        return np.asarray(self.size[self.block])

    @property
    def num_blocks(self) -> Index:
        """Blocks of the outer unit of each member, of shape [M]."""
        return np.asarray(self.count[self.block])

    def after(self, steps: Index | int) -> Index:
        """The block `steps` after each block, around those of its outer unit."""
        return np.asarray(self.first + (self.turn + steps) % self.count)

    def facing(self, block: Index) -> Index:
        """The rank of the machine in `block` (of shape [M]) that is at each member's place."""
        return np.asarray(self.members[self.start[block] + self.place % self.size[block]])


def tree_parents(count: Index, turn: Index) -> tuple[Index, Index]:
    """The parents of place `turn` of `count` in each of two binary trees; -1 at a root.

    The first is in order: leaves are the even places, as in a search tree; the second is the first
    moved on by one place, so that who is inside one tree is mostly a leaf of the other.

    Source: Sanders, Speck, Traeff, Parallel Computing 35 (2009) 581.
    """
    shifted = (turn - 1) % np.maximum(count, 1)
    second = _parent(count, shifted)
    moved = np.where(second >= 0, (second + 1) % np.maximum(count, 1), -1)
    return _parent(count, turn), moved


def _parent(count: Index, turn: Index) -> Index:
    """The parent in the tree whose root is the largest power of two below `count`, less one."""
    at = turn + 1
    low = at & -at
    up = np.where(at & (low << 1), at - low, at + low)
    for _ in range(int(np.max(count, initial=1)).bit_length()):
        beyond = up > count
        low_up = up & -up
        up = np.where(beyond, np.where(up & (low_up << 1), up - low_up, up + low_up), up)
        if not beyond.any():
            break
    root = np.int64(1) << np.int64(np.floor(np.log2(np.maximum(count, 1))))
    return np.where(at == root, -1, up - 1)
