"""Who sends to whom: flows, each of which is a rank's messages of one kind, and crowds of them."""

# Shapes: F flows, T trips of flows, C crowds, P trips of crowds
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Messages:
    """Trips of flows, all of shape [T]: a flow sends the `share` of its rate on each of its trips.

    `source` and `target` are ranks of the machine and `level` the index of the level between them.
    A trip that `is_crowd` takes only the ports of its source, both ways: its links are those of the
    crowd that its flow belongs to, and what its source's partners receive is, by symmetry, what the
    source receives itself.
    """

    flow: Index
    source: Index
    target: Index
    share: Array
    level: Index
    pattern: Index
    is_crowd: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crowds:
    """Flows of one unit that go to the same units in the same shares, such as an all-to-all's.

    `flow`, `crowd` and `part`: which flows send what share of their rate as one of a crowd. Of each
    crowd's trips `of`, `level`, `unit`, `source`, `target` (units, as `joint.Trips` has them),
    `share`, and `num_ranks` of the crowd, each of shape [P].
    """

    flow: Index
    crowd: Index
    part: Array
    of: Index
    level: Index
    unit: Index
    source: Index
    target: Index
    share: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Sending:
    """Flows of some bursts: what each sends, for which team and in which turn of it.

    `amount` is what a flow takes of the links in bytes, and `bytes` what it delivers: a protocol
    that sends flags along takes more. `places` is how many flows one stands for: each has ports of
    its own, and all share the links beyond. All of shape [F].
    """

    amount: Array
    bytes: Array
    team: Index
    turn: Index
    places: Array
    messages: Messages
    crowds: Crowds

    @property
    def num_flows(self) -> int:
        """F."""
        return self.amount.size

    @property
    def num_crowds(self) -> int:
        """C."""
        return int(self.crowds.crowd.max(initial=-1)) + 1


_NONE = np.zeros(0, np.int64)
NO_CROWDS = Crowds(
    flow=_NONE,
    crowd=_NONE,
    part=np.zeros(0),
    of=_NONE,
    level=_NONE,
    unit=_NONE,
    source=_NONE,
    target=_NONE,
    share=np.zeros(0),
)


def together(parts: Sequence[Sending]) -> Sending:
    """The flows of all `parts`, numbered through; teams keep their numbers."""
    flows = np.cumsum([0, *(one.num_flows for one in parts)])
    crowds = np.cumsum([0, *(one.num_crowds for one in parts)])

    def joined(name: str, of: Sequence[Any], shift: Index | None = None) -> Any:
        found = [getattr(one, name) for one in of]
        if shift is not None:
            found = [some + by for some, by in zip(found, shift[:-1], strict=True)]
        return np.concatenate(found)

    sent, shared = [one.messages for one in parts], [one.crowds for one in parts]
    shifts = {"flow": flows, "crowd": crowds, "of": crowds}
    return Sending(
        **{name: joined(name, parts) for name in ("amount", "bytes", "team", "turn", "places")},
        messages=Messages(
            **{one.name: joined(one.name, sent, shifts.get(one.name)) for one in fields(Messages)}
        ),
        crowds=Crowds(
            **{one.name: joined(one.name, shared, shifts.get(one.name)) for one in fields(Crowds)}
        ),
    )
