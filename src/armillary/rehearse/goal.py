"""A step in GOAL, the language of LogGOPSim: what each rank computes, sends and receives.

Source: Hoefler, Siebert, Lumsdaine 2009, "Group Operation Assembly Language", ICPP; the form that
LogGOPSim's `txt2bin` reads: calc in nanoseconds, sizes in bytes, tags that match within a pair.
"""

from collections import defaultdict
from pathlib import Path

from armillary.core.orders import rank_of
from armillary.core.play import Played
from armillary.rehearse.step import AHEAD, BACK, LANES, Label, Step
from armillary.spec import write_atomically


def write_goal(step: Step, played: Played, path: Path) -> None:
    """Write the played ranks' program to `path`.

    Messages between stages are sends and receives; the played ranks stand for their groups, so a
    collective inside one is a `calc` of the seconds that it took here. Each stream of a rank is a
    `cpu` of its own.
    """
    write_atomically(path, goal(step, played))


def goal(step: Step, played: Played) -> str:
    """The program of the played ranks, which are numbered in the order of the pipeline."""
    number_of: dict[tuple[int, int], int] = {}
    for coordinate, ranks in enumerate(step.players):
        for player in range(len(ranks)):
            number_of[coordinate, player] = len(number_of)
    lines: dict[int, list[str]] = defaultdict(list)
    receives: dict[int, tuple[int, int]] = {}  # a hop's task: the rank that receives it, its tag
    needs: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    before = _before_on_stream(step)
    for index, label in enumerate(step.labels):
        rank = number_of[label.coordinate, step.player_of[index]]
        own, lane = f"t{index}", LANES.index(label.lane)
        if label.lane in (AHEAD, BACK):
            other = number_of[_receiver(step, label), step.player_of[index]]
            size, tag = max(round(label.bytes), 1), index
            lines[rank].append(f"{own}: send {size}b to {other} tag {tag} cpu {lane}")
            lines[other].append(f"r{index}: recv {size}b from {rank} tag {tag} cpu {lane}")
            receives[index] = (other, tag)
        else:
            span_s = played.end_s[index] - played.start_s[index]
            lines[rank].append(f"{own}: calc {round(span_s * 1e9)} cpu {lane}")
        for needed in (*step.tasks.after[index], *before.get(index, ())):
            whose = number_of[step.labels[needed].coordinate, step.player_of[needed]]
            if whose == rank:
                needs[rank][own].append(f"t{needed}")
            elif needed in receives and receives[needed][0] == rank:
                needs[rank][own].append(f"r{needed}")
    told = [f"num_ranks {len(number_of)}", ""]
    for rank in range(len(number_of)):
        told.append(f"rank {rank} {{")
        told += lines[rank]
        for own, all_of in needs[rank].items():
            told += [f"{own} requires {needed}" for needed in dict.fromkeys(all_of)]
        told += ["}", ""]
    return "\n".join(told)


def _before_on_stream(step: Step) -> dict[int, tuple[int, ...]]:
    return {
        line[place]: (line[place - 1],)
        for line in step.tasks.streams
        for place in range(1, len(line))
    }


def _receiver(step: Step, label: Label) -> int:
    to = label.stage + (1 if label.lane == AHEAD else -1)
    return rank_of(to, len(step.players), step.workload.schedule)
