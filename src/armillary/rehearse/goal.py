"""A step in GOAL, the language of LogGOPSim: what each rank computes, sends and receives.

Source: Hoefler, Siebert, Lumsdaine 2009, "Group Operation Assembly Language", ICPP; the form that
LogGOPSim's `txt2bin` reads: calc in nanoseconds, sizes in bytes, tags that match within a pair.
"""

from dataclasses import dataclass, field
from pathlib import Path

from armillary.core.orders import rank_of
from armillary.core.play import Played
from armillary.rehearse.step import AHEAD, BACK, GATHER, REDUCE, Label, Step
from armillary.spec import write_atomically

BESIDE = (GATHER, REDUCE)
"""Streams that are ranks of their own: LogGOPSim lets nobody wait for another processor's calc."""


def write_goal(step: Step, played: Played, path: Path) -> None:
    """Write the played ranks' program to `path`.

    Messages between stages are sends and receives; the played ranks stand for their groups, so a
    collective inside one is a `calc` of the seconds that it took here. What is gathered and summed
    beside a pass runs on ranks of its own, which tell each other by messages of one byte.
    """
    write_atomically(path, goal(step, played))


def goal(step: Step, played: Played) -> str:
    """The program: first the played ranks in the order of the pipeline, then streams beside."""
    program = _Program()
    for coordinate, ranks in enumerate(step.players):
        for player in range(len(ranks)):
            program.number(coordinate, player, "")
    before = _before_on_stream(step)
    for index, label in enumerate(step.labels):
        player = step.player_of[index]
        lane = label.lane if label.lane in BESIDE else ""
        rank = program.number(label.coordinate, player, lane)
        own = f"t{index}"
        if label.lane in (AHEAD, BACK):
            other = program.number(_receiver(step, label), player, "")
            size = max(round(label.bytes), 1)
            program.lines[rank].append(f"{own}: send {size}b to {other} tag {index}")
            program.lines[other].append(f"r{index}: recv {size}b from {rank} tag {index}")
            program.hops[index] = other
        else:
            span_s = played.end_s[index] - played.start_s[index]
            program.lines[rank].append(f"{own}: calc {round(span_s * 1e9)}")
        program.rank_of[index] = rank
        for needed in dict.fromkeys((*step.tasks.after[index], *before.get(index, ()))):
            program.wait(rank, own, needed)
    return program.text()


@dataclass(kw_only=True, slots=True)
class _Program:
    """Lines and waits by rank; `hops` has by task of a message the rank that receives it."""

    numbers: dict[tuple[int, int, str], int] = field(default_factory=dict)
    lines: list[list[str]] = field(default_factory=list)
    waits: list[list[str]] = field(default_factory=list)
    rank_of: dict[int, int] = field(default_factory=dict)
    hops: dict[int, int] = field(default_factory=dict)
    told: dict[tuple[int, int], str] = field(default_factory=dict)

    def number(self, coordinate: int, player: int, lane: str) -> int:
        """The rank of a player, or of a stream beside it."""
        key = (coordinate, player, lane)
        if key not in self.numbers:
            self.numbers[key] = len(self.numbers)
            self.lines.append([])
            self.waits.append([])
        return self.numbers[key]

    def wait(self, rank: int, own: str, needed: int) -> None:
        """`own` of `rank` starts after the task `needed`, wherever that runs."""
        if self.rank_of[needed] == rank:
            self.waits[rank].append(f"{own} requires t{needed}")
        elif self.hops.get(needed) == rank:
            self.waits[rank].append(f"{own} requires r{needed}")
        else:
            self.waits[rank].append(f"{own} requires {self._tell(rank, needed)}")

    def _tell(self, rank: int, needed: int) -> str:
        """A message of one byte to `rank` that a task is done."""
        if (rank, needed) not in self.told:
            whose, tag = self.rank_of[needed], 10**6 + len(self.told)
            self.told[rank, needed] = f"m{tag}"
            self.lines[whose].append(f"m{tag}: send 1b to {rank} tag {tag}")
            self.waits[whose].append(f"m{tag} requires t{needed}")
            self.lines[rank].append(f"m{tag}: recv 1b from {whose} tag {tag}")
        return self.told[rank, needed]

    def text(self) -> str:
        """All of it."""
        told = [f"num_ranks {len(self.numbers)}", ""]
        for rank in range(len(self.numbers)):
            told += [f"rank {rank} {{", *self.lines[rank], *self.waits[rank], "}", ""]
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
