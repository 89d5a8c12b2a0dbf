"""The events of representative ranks, compact, for a drawing or a trace."""

from collections.abc import Sequence
from dataclasses import dataclass

from armillary.core.play import Played
from armillary.rehearse.step import LANES, Label, Step

MOST_EVENTS, MOST_RANKS = 30_000, 32
CLASSES = ("forward", "backward", "weights", "message", "update")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a drawing: a lane of the rank at a coordinate of the pipeline."""

    coordinate: int
    lane: str
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Gantt:
    """Rows and their events: (row, start s, end s, index in `names`, class, micro batch).

    `idle_s` has by row of a device the seconds in which it did nothing.
    """

    rows: tuple[Row, ...]
    names: tuple[str, ...]
    events: list[tuple[int, float, float, int, int, int]]
    end_s: float


def gantt(step: Step, played: Played) -> Gantt:
    """The events of as many ranks as can be drawn, spread evenly over the pipeline."""
    chosen = _chosen(step)
    rows: list[Row] = []
    place: dict[tuple[int, str], int] = {}
    used = {(label.coordinate, label.lane) for label in step.labels}
    for coordinate in chosen:
        for lane in LANES:
            if (coordinate, lane) in used:
                place[coordinate, lane] = len(rows)
                rows.append(Row(coordinate, lane, step.players[coordinate][0]))
    names: dict[str, int] = {}
    events = []
    for index, label in enumerate(step.labels):
        row = place.get((label.coordinate, label.lane))
        span_s = played.end_s[index] - played.start_s[index]
        if row is None or step.player_of[index] or span_s <= 0:
            continue
        name = words_of(label, step)
        events.append(
            (
                row,
                played.start_s[index],
                played.end_s[index],
                names.setdefault(name, len(names)),
                class_of(label),
                label.micro_batch,
            )
        )
    return Gantt(rows=tuple(rows), names=tuple(names), events=events, end_s=played.step_s)


def _chosen(step: Step) -> Sequence[int]:
    number = len(step.players)
    each = max(len(step.labels) // number, 1)
    most = max(min(number, MOST_RANKS, MOST_EVENTS // each), 1)
    if most == number:
        return range(number)
    if most == 1:
        return [0]
    return sorted({round(i * (number - 1) / (most - 1)) for i in range(most)})


def words_of(label: Label, step: Step) -> str:
    """What a task is, in words."""
    stage = f" stage {label.stage}" if label.stage >= 0 else ""
    told = {
        "F": "forward",
        "B": "backward",
        "I": "backward of inputs",
        "W": "backward of weights",
    }.get(label.kind, label.kind)
    if label.level < 0:
        return told + stage
    levels = step.links.machine.levels
    return f"{told} ({levels[label.level].name}){stage}" if levels else told + stage


def class_of(label: Label) -> int:
    """The index in `CLASSES` of what a task is."""
    kinds = {"F": 0, "B": 1, "I": 1, "W": 2, "update": 4, "step": 4}
    return kinds.get(label.kind, 3)
