"""A step played as events: tasks on streams, of which some share links.

A task starts when the one before it on its stream and all that it waits for are done, as on CUDA
streams with events between them. It first takes its `fixed_s`, and then sends for `wire_s` at the
rate that its links leave it: a link of capacity C whose senders weigh W together gives each the
rate C / W, of all its links a sender gets the least, and never more than its `boost`.

`play` walks through time once with contention; `replay` (`core/chance.py`) runs the same tasks for
many samples at once, with the seconds on the wire that `play` found.

Source: streams and events, CUDA C++ Programming Guide, section 3.2.8; equal shares of a link:
Velho et al. 2013, "On the validity of flow-level TCP network models", ACM TOMACS 23(4).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise

EPSILON = 1e-12
"""What is left of a sending, as a share of it, is nothing from here on."""


@dataclass(kw_only=True, slots=True)
class Tasks:
    """Tasks as columns; `streams` says by stream which run on it, in order.

    `after` are the tasks that one waits for, by index. `links` are pairs of a link and the weight
    with which it is sent over. `part` is the device whose speed the task shares: -1 for none. A
    task that `slows` others takes a part of its device's speed while it runs; one that is `slowed`
    then runs at 1 - `slowdown`.
    """

    fixed_s: list[float] = field(default_factory=list)
    wire_s: list[float] = field(default_factory=list)
    boost: list[float] = field(default_factory=list)
    links: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    after: list[tuple[int, ...]] = field(default_factory=list)
    stream: list[int] = field(default_factory=list)
    part: list[int] = field(default_factory=list)
    slows: list[bool] = field(default_factory=list)
    slowed: list[bool] = field(default_factory=list)
    streams: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.fixed_s)

    def add_stream(self) -> int:
        """A new stream, by its number."""
        self.streams.append([])
        return len(self.streams) - 1

    def add(
        self,
        stream: int,
        fixed_s: float,
        after: Sequence[int] = (),
        *,
        wire_s: float = 0.0,
        boost: float = 1.0,
        links: Sequence[tuple[int, float]] = (),
        part: int = -1,
        slows: bool = False,
        slowed: bool = False,
    ) -> int:
        """A new task at the end of a stream, by its number."""
        self.fixed_s.append(fixed_s)
        self.wire_s.append(wire_s)
        self.boost.append(boost)
        self.links.append(tuple(links))
        self.after.append(tuple(after))
        self.stream.append(stream)
        self.part.append(part)
        self.slows.append(slows)
        self.slowed.append(slowed)
        number = len(self.fixed_s) - 1
        self.streams[stream].append(number)
        return number


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """When each task started and ended, in seconds; what let it start (-1: the step's beginning).

    `order` has the tasks as they ended, which is an order in which they may be run again.
    `link_s` says by link for how many seconds at full rate it was sent over, weights counted.
    """

    start_s: list[float]
    end_s: list[float]
    cause: list[int]
    order: list[int]
    link_s: list[float]

    @property
    def step_s(self) -> float:
        """When the last task ended."""
        return max(self.end_s, default=0.0)


def play(tasks: Tasks, capacity: Sequence[float] = (), slowdown: float = 0.0) -> Played:
    """The tasks from 0 on, over links of so much `capacity` each.

    Raises: `ValueError` if tasks wait for one another for ever.
    """
    return _Play(tasks, capacity, slowdown).run()


class _Play:
    """The state of a play: what waits, what runs, and the events that are to come."""

    def __init__(self, tasks: Tasks, capacity: Sequence[float], slowdown: float) -> None:
        self.tasks, self.capacity, self.slowdown = tasks, capacity, slowdown
        n = len(tasks)
        self.start = [0.0] * n
        self.end = [0.0] * n
        self.cause = [-1] * n
        self.order: list[int] = []
        self.link_s = [0.0] * len(capacity)
        self.left: dict[int, float] = {}  # what runs at a rate: seconds left at rate 1
        self.rate: dict[int, float] = {}
        self.since: dict[int, float] = {}
        self.version = [0] * n
        self.sends = [False] * n
        self.on_link: list[dict[int, float]] = [{} for _ in capacity]
        self.weight = [0.0] * len(capacity)
        self.slowing: dict[int, int] = {}
        self.running: dict[int, set[int]] = {}
        self.events: list[tuple[float, int, int]] = []
        self.next: list[list[int]] = [[] for _ in range(n)]
        self.waiting = [0] * n
        for line in tasks.streams:
            for before, after in pairwise(line):
                self._wait(before, after)
        for index, needed in enumerate(tasks.after):
            for before in needed:
                self._wait(before, index)

    def _wait(self, before: int, after: int) -> None:
        self.next[before].append(after)
        self.waiting[after] += 1

    def run(self) -> Played:
        """Until nothing is left."""
        for index, waits in enumerate(list(self.waiting)):
            if not waits:
                self._begin(index, 0.0)
        while self.events:
            time, index, version = heappop(self.events)
            if version == self.version[index]:
                self._event(index, time)
        if len(self.order) < len(self.tasks):
            raise ValueError("the tasks wait for one another")
        return Played(
            start_s=self.start,
            end_s=self.end,
            cause=self.cause,
            order=self.order,
            link_s=self.link_s,
        )

    def _begin(self, index: int, time: float) -> None:
        tasks = self.tasks
        self.start[index] = time
        if self.slowdown and tasks.slows[index]:
            self._slow(tasks.part[index], 1, time)
        if self.slowdown and tasks.slowed[index]:
            self.running.setdefault(tasks.part[index], set()).add(index)
            self.left[index], self.since[index] = tasks.fixed_s[index], time
            self.rate[index] = self._speed(tasks.part[index])
            self._foresee(index, time)
        else:
            heappush(self.events, (time + tasks.fixed_s[index], index, 0))

    def _event(self, index: int, time: float) -> None:
        """The fixed part of a task is done, or its sending."""
        tasks = self.tasks
        if index in self.left:
            del self.left[index], self.rate[index], self.since[index]
            if tasks.slowed[index] and not self.sends[index]:
                self.running[tasks.part[index]].discard(index)
        if self.sends[index]:
            self._leave(index, time)
        elif tasks.wire_s[index] > 0:
            self.sends[index] = True
            self._enter(index, time)
            return
        self._finish(index, time)

    def _finish(self, index: int, time: float) -> None:
        self.end[index] = time
        self.order.append(index)
        if self.slowdown and self.tasks.slows[index]:
            self._slow(self.tasks.part[index], -1, time)
        for after in self.next[index]:
            self.waiting[after] -= 1
            if not self.waiting[after]:
                self.cause[after] = index
                self._begin(after, time)

    # ------------------------------------------------------------------------------------- links
    def _enter(self, index: int, time: float) -> None:
        links = self.tasks.links[index]
        for link, weight in links:
            self.on_link[link][index] = weight
            self.weight[link] += weight
        self.left[index], self.since[index] = self.tasks.wire_s[index], time
        self.rate[index] = self._share(index)
        self._foresee(index, time)
        self._changed(links, index, time)

    def _leave(self, index: int, time: float) -> None:
        links = self.tasks.links[index]
        for link, weight in links:
            del self.on_link[link][index]
            self.weight[link] -= weight
            self.link_s[link] += weight * self.tasks.wire_s[index]
            if not self.on_link[link]:
                self.weight[link] = 0.0
        self._changed(links, index, time)

    def _share(self, index: int) -> float:
        rate = self.tasks.boost[index]
        for link, weight in self.tasks.links[index]:
            if weight > 0:
                rate = min(rate, self.capacity[link] / self.weight[link])
        return rate

    def _changed(self, links: Sequence[tuple[int, float]], but: int, time: float) -> None:
        """New rates for all that share `links`."""
        for link, _ in links:
            for index in self.on_link[link]:
                if index != but:
                    self._set_rate(index, self._share(index), time)

    def _set_rate(self, index: int, rate: float, time: float) -> None:
        if rate != self.rate[index]:
            self.left[index] -= (time - self.since[index]) * self.rate[index]
            self.since[index], self.rate[index] = time, rate
            self._foresee(index, time)

    def _foresee(self, index: int, time: float) -> None:
        """When a task will be done at its rate."""
        self.version[index] += 1
        left = max(self.left[index], 0.0)
        heappush(self.events, (time + left / self.rate[index], index, self.version[index]))

    # ----------------------------------------------------------------------------------- devices
    def _speed(self, part: int) -> float:
        return 1.0 - self.slowdown if self.slowing.get(part, 0) else 1.0

    def _slow(self, part: int, change: int, time: float) -> None:
        """One more or fewer that slows a device."""
        self.slowing[part] = self.slowing.get(part, 0) + change
        for index in self.running.get(part, ()):
            self._set_rate(index, self._speed(part), time)


def critical_path(played: Played) -> list[int]:
    """The tasks that the last one waited for, each for the next, from the first to the last."""
    if not played.end_s:
        return []
    at = max(range(len(played.end_s)), key=lambda index: (played.end_s[index], index))
    found = []
    while at >= 0:
        found.append(at)
        at = played.cause[at]
    return found[::-1]
