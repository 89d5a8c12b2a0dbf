"""What is asked of the network at one time, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ranks = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Burst:
    """One collective that many groups of a job do at the same time, all of the same size.

    `collective` and `bytes` are as in `networks.seconds`: torch's name, and the whole tensor before
    it is divided over the group. `spans` are the degree and the stride in ranks of each axis of the
    group, innermost first or in any order: the job's ranks fall into groups by them, and all of
    these start together. Where only some groups send, or they are of no regular form, `members` of
    shape [groups, ranks of one] names their ranks instead.

    A "send" goes from each member to the next and not from the last, as between the stages of a
    pipeline; "batch_isend_irecv" closes the ring.
    """

    collective: str
    bytes: float
    spans: Sequence[tuple[int, int]] = ()
    members: Ranks | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelLoad:
    """What the links of one level carried: for a map of the network by heat.

    `bytes` is what crossed the level in all; `busiest` and `mean` are shares of what a link could
    have carried until the last burst was done, of the fullest link and over those that carried
    something, `num_played` of the level's `num_links` (of links that are alike some were played).
    Ports that several levels share count for the innermost of these.
    """

    level: str
    bytes: float
    busiest: float
    mean: float
    num_links: int
    num_played: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Contended:
    """Bursts that shared the network.

    `seconds` until the slowest group of each burst is done, and `closed_form_s`, what
    `networks.seconds` says, both of shape [bursts]. `group_seconds` has one array for each burst,
    of shape [groups]. `held_by` names the level whose links hold up the slowest group of each.
    """

    seconds: Array
    closed_form_s: Array
    group_seconds: tuple[Array, ...]
    held_by: tuple[str, ...]
    loads: tuple[LevelLoad, ...] = field(default=())

    @property
    def slowdown(self) -> Array:
        """How many times longer than its closed form each burst takes; 1 where neither does."""
        some = self.closed_form_s > 0
        return np.divide(
            self.seconds, self.closed_form_s, out=np.ones_like(self.seconds), where=some
        )
