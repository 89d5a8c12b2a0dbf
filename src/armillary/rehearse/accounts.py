"""What a played step went into: by rank, along the critical path, and on the links."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from armillary.core.play import Played, critical_path
from armillary.rehearse.step import AHEAD, BACK, COMPUTE, Label, Step, stages_of
from armillary.spec.rehearsal import LinkLoad, Share

WORDS = {"F": "forward", "B": "backward", "I": "backward", "W": "backward"}
BUBBLE, OTHERS, RECOMPUTE = "bubble", "waiting for other ranks", "recompute"
ONCE = ("update", "step", OTHERS, BUBBLE)
"""What does not grow with the number of micro batches."""


@dataclass(frozen=True, slots=True)
class Key:
    """What parts of a step are summed by."""

    name: str
    level: int = -1


def key_of(label: Label) -> Key:
    """What a task counts as."""
    return Key(WORDS.get(label.kind, label.kind), label.level)


def terms_of(step: Step, played: Played, predicted_step_s: float) -> tuple[Share, ...]:
    """The seconds of the rank that computes longest, the largest first; they add up to the step's.

    Where only some of the micro batches were played, what grows with them is scaled up.
    """
    coordinate = _busiest(step, played)
    seconds: dict[Key, float] = defaultdict(float)
    clock = 0.0
    for index in _line(step, coordinate):
        label = step.labels[index]
        for key, gap_s in _waited(step, played, index, clock):
            seconds[key] += gap_s
        span_s = played.end_s[index] - played.start_s[index]
        again_s = _again_share(step, label) * span_s
        seconds[key_of(label)] += span_s - again_s
        seconds[Key(RECOMPUTE)] += again_s
        clock = played.end_s[index]
    seconds[Key(OTHERS)] += played.step_s - clock
    growing = sum(s for key, s in seconds.items() if key.name not in ONCE)
    more = (predicted_step_s - played.step_s) / growing if growing else 0.0
    return _shares(
        step,
        {key: s * (1.0 if key.name in ONCE else 1.0 + more) for key, s in seconds.items()},
        (label for label in step.labels if label.coordinate == coordinate),
    )


def _busiest(step: Step, played: Played) -> int:
    busy = [0.0] * len(step.players)
    for index, label in enumerate(step.labels):
        if label.lane == COMPUTE and step.player_of[index] == 0:
            busy[label.coordinate] += played.end_s[index] - played.start_s[index]
    return max(range(len(busy)), key=lambda coordinate: busy[coordinate])


def _line(step: Step, coordinate: int) -> Iterator[int]:
    """The tasks of a rank's device, in order."""
    for index, label in enumerate(step.labels):
        if label.coordinate == coordinate and label.lane == COMPUTE and not step.player_of[index]:
            yield index


def _again_share(step: Step, label: Label) -> float:
    """The share of a backward pass that is recomputing."""
    if label.kind not in ("B", "I"):
        return 0.0
    work = stages_of(step.workload)[label.stage]
    whole = work.again_s + work.backward_input_s
    whole += work.backward_weight_s if label.kind == "B" else 0.0
    return work.again_s / whole if whole else 0.0


def _waited(step: Step, played: Played, index: int, clock: float) -> Iterator[tuple[Key, float]]:
    """The time before a task in which its device did nothing, by what it waited for."""
    gap_s = played.start_s[index] - clock
    cause = played.cause[index]
    while gap_s > 0 and cause >= 0:
        label = step.labels[cause]
        if label.lane == COMPUTE:
            break
        sent_s = min(played.end_s[cause] - played.start_s[cause], gap_s)
        yield key_of(label), sent_s
        gap_s -= sent_s
        cause = played.cause[cause]
    if gap_s > 0:
        yield Key(BUBBLE), gap_s


def critical_of(step: Step, played: Played) -> tuple[Share, ...]:
    """The critical path, summed by what its tasks are, the longest first."""
    seconds: dict[Key, float] = defaultdict(float)
    labels = []
    for index in critical_path(played):
        label = step.labels[index]
        labels.append(label)
        span_s = played.end_s[index] - played.start_s[index]
        again_s = _again_share(step, label) * span_s
        seconds[key_of(label)] += span_s - again_s
        seconds[Key(RECOMPUTE)] += again_s
    return _shares(step, seconds, labels)


def _shares(step: Step, seconds: Mapping[Key, float], labels: Iterable[Label]) -> tuple[Share, ...]:
    sizes: dict[Key, float] = defaultdict(float)
    for label in labels:
        if label.bytes:
            sizes[key_of(label)] += label.bytes
    collectives = _collectives(step)
    levels = step.links.machine.levels
    found = [
        Share(
            name=key.name,
            predicted_s=s,
            level=levels[key.level].name if 0 <= key.level < len(levels) else "",
            collectives=collectives.get(key.name, ()) if key.level >= 0 else (),
            bytes=sizes.get(key, 0.0),
        )
        for key, s in seconds.items()
        if s > 0
    ]
    return tuple(sorted(found, key=lambda one: -one.predicted_s))


def _collectives(step: Step) -> dict[str, tuple[str, ...]]:
    """torch's names of the collectives of every kind of message."""
    sorts = step.sorted
    found: dict[str, tuple[str, ...]] = {}
    groups = [*sorts.inside.values(), *sorts.gathers.values(), sorts.reduces, sorts.after]
    for kind in (kind for group in groups for kind in group):
        known = found.get(kind.name, ())
        found[kind.name] = tuple(dict.fromkeys((*known, *kind.collectives)))
    found[f"{step.workload.stages_axis} activations"] = ("send",)
    return found


def loads_of(step: Step, played: Played) -> tuple[LinkLoad, ...]:
    """How busy the links of every level were, of the units that were played."""
    by_level: dict[int, dict[str, float]] = defaultdict(dict)
    for link, (level, unit) in enumerate(step.link_names):
        whole_s = step.links.capacity(level) * played.step_s
        share = played.link_s[link] / whole_s if whole_s else 0.0
        by_level[level][str(unit)] = min(share, 1.0)
    found = []
    for level, units in sorted(by_level.items()):
        one = step.links.machine.levels[level]
        found.append(
            LinkLoad(
                level=one.name,
                network=one.network,
                busiest=max(units.values()),
                mean=sum(units.values()) / len(units),
                units=units,
            )
        )
    return tuple(found)


def shared_wire_s(step: Step, played: Played) -> dict[Key, tuple[float, float]]:
    """Of each kind of message its seconds on the wire alone, and as they were on shared links."""
    found: dict[Key, tuple[float, float]] = {}
    for index, label in enumerate(step.labels):
        wire_s = step.tasks.wire_s[index]
        if wire_s > 0:
            took_s = played.end_s[index] - played.start_s[index] - step.tasks.fixed_s[index]
            alone_s, all_s = found.get(key_of(label), (0.0, 0.0))
            found[key_of(label)] = (alone_s + wire_s, all_s + took_s)
    return found


def is_hop(label: Label) -> bool:
    """Whether a task is a message between stages."""
    return label.lane in (AHEAD, BACK)


def scaled(shares: tuple[Share, ...], factor: float) -> tuple[Share, ...]:
    """The same, `factor` times as long."""
    return tuple(replace(one, predicted_s=one.predicted_s * factor) for one in shares)
