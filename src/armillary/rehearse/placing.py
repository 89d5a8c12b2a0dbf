"""Tasks put on the streams of all players at a coordinate, over the links of the machine."""

from collections.abc import Iterator, Sequence

from armillary.core.orders import Run
from armillary.rehearse.kinds import Kind
from armillary.rehearse.links import Cost
from armillary.rehearse.step import COMPUTE, GATHER, REDUCE, Label, Step


class Placing:
    """Puts tasks into a step; `expanded` says that every rank plays for itself."""

    def __init__(self, step: Step, *, expanded: bool) -> None:
        self.step, self.links, self.expanded = step, step.links, expanded
        self.axis = step.workload.stages_axis
        self._link: dict[tuple[int, int], int] = {}
        self._streams: dict[tuple[int, int, str], int] = {}
        self._members: dict[tuple[int, tuple[str, ...]], list[list[int]]] = {}
        self._weights: dict[tuple[int, int, int], float] = {}

    def _stream(self, coordinate: int, player: int, lane: str) -> int:
        key = (coordinate, player, lane)
        if key not in self._streams:
            self._streams[key] = self.step.tasks.add_stream()
        return self._streams[key]

    def compute(
        self,
        coordinate: int,
        run: Run,
        seconds: float,
        waits: Sequence[list[int] | None],
    ) -> list[int]:
        """A part of a pass, after what each player waits for."""
        label = Label(coordinate, COMPUTE, run.kind, run.stage, run.micro_batch)
        return [
            self.add(
                label,
                player,
                seconds,
                [one[player] for one in waits if one is not None],
                slowed=True,
            )
            for player in range(len(self.step.players[coordinate]))
        ]

    def add(
        self,
        label: Label,
        player: int,
        fixed_s: float,
        after: Sequence[int],
        *,
        cost: Cost | None = None,
        slows: bool = False,
        slowed: bool = False,
    ) -> int:
        """One task of one player."""
        coordinate = label.coordinate
        rank = self.step.players[coordinate][player]
        found = self.step.tasks.add(
            self._stream(coordinate, player, label.lane),
            fixed_s,
            after,
            wire_s=cost.wire_s if cost else 0.0,
            boost=self.links.boost(cost) if cost else 1.0,
            links=list(self._links(coordinate, rank, cost)) if cost else (),
            part=rank,
            slows=slows,
            slowed=slowed,
        )
        self.step.labels.append(label)
        self.step.player_of.append(player)
        return found

    def _links(self, coordinate: int, rank: int, cost: Cost) -> Iterator[tuple[int, float]]:
        for level, share in self.links.taken(cost):
            unit = rank // self.links.units[level]
            key = (level, unit)
            if key not in self._link:
                self._link[key] = len(self._link)
                self.step.link_names.append(key)
            yield self._link[key], share * self._weight(level, unit, coordinate)

    def _weight(self, level: int, unit: int, coordinate: int) -> float:
        """For how many ranks of a unit a player stands."""
        if self.expanded:
            return 1.0
        key = (level, unit, coordinate)
        if key not in self._weights:
            ranks = self.links.ranks_at(self.axis, coordinate)
            self._weights[key] = float((ranks // self.links.units[level] == unit).sum())
        return self._weights[key]

    def message(
        self,
        coordinate: int,
        lane: str,
        kind: Kind,
        cost: Cost,
        after: list[int] | None,
        run: Run | None = None,
        also: list[int] | None = None,
    ) -> list[int]:
        """A collective: every member starts when all of its group are there."""
        label = Label(
            coordinate,
            lane,
            kind.name,
            run.stage if run else -1,
            run.micro_batch if run else -1,
            cost.level,
            cost.bytes,
            kind.group,
        )
        found = []
        for player, group in enumerate(self._groups(coordinate, kind.group)):
            waits = [one[member] for one in (after, also) if one for member in group]
            slows = lane in (GATHER, REDUCE)
            found.append(self.add(label, player, cost.fixed_s, waits, cost=cost, slows=slows))
        return found

    def _groups(self, coordinate: int, axes: tuple[str, ...]) -> list[list[int]]:
        """By player the players of its group at the same coordinate."""
        ranks = self.step.players[coordinate]
        if len(ranks) == 1:
            return [[0]]
        key = (coordinate, axes)
        if key not in self._members:
            others = [
                tuple(
                    rank // self.links.strides[a] % self.links.degrees[a]
                    for a in self.links.degrees
                    if a not in axes
                )
                for rank in ranks
            ]
            by_place: dict[tuple[int, ...], list[int]] = {}
            for player, other in enumerate(others):
                by_place.setdefault(other, []).append(player)
            self._members[key] = [by_place[other] for other in others]
        return self._members[key]

    def last_computed(self, coordinate: int) -> list[int] | None:
        """By player the last task of its device so far; none where there is none."""
        lines = [
            self.step.tasks.streams[self._stream(coordinate, player, COMPUTE)]
            for player in range(len(self.step.players[coordinate]))
        ]
        return [line[-1] for line in lines] if lines[0] else None
