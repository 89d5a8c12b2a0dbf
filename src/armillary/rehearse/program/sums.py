"""Events added up: what a run of them takes at most, leaves behind, computes and sends."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from armillary.rehearse.program.ledger import (
    BACKWARD,
    BETWEEN,
    NEVER,
    OPTIMISER,
    Event,
    Held,
    Ledger,
    Mark,
    Message,
    Stretch,
)
from armillary.spec.record import CATEGORIES

NUMBER = {category: i for i, category in enumerate(CATEGORIES)}
LASTING = (NUMBER["gradients"], NUMBER["optimiser"])
Bytes = list[int]
"""Bytes by category, in the order of `CATEGORIES`."""


@dataclass(slots=True)
class Sum:
    """What some events come to: bytes that they leave, and at their fullest, by category; flops and
    messages.
    """

    left: Bytes = field(default_factory=lambda: [0] * len(CATEGORIES))
    fullest: Bytes = field(default_factory=lambda: [0] * len(CATEGORIES))
    flops: int = 0
    sent: Counter[Message] = field(default_factory=Counter)
    top: int = 0
    total: int = 0

    def add(self, category: int, size: int) -> None:
        """Take `size` bytes, or give them back where it is below 0."""
        self.left[category] += size
        self.total += size
        if self.total > self.top:
            self.top, self.fullest = self.total, self.left.copy()


@dataclass(frozen=True, slots=True)
class Part:
    """What one block did in a pass, or what was done between blocks under "".

    `is_after` is what was done after the last block, by the module at `path` if that is known.
    """

    path: str
    sum: Sum
    is_after: bool = False


class Adding:
    """The events of a ledger, added up with what memory turned out to be for."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.kinds = [Mark(BETWEEN), *(mark for _, mark in ledger.marks)]
        self.categories = [NUMBER[self._category(held)] for held in ledger.held]
        # states and buckets of gradients: in a later step they are there from the beginning
        self.lasting = [
            held.died == NEVER and held.born > 0 and category in LASTING
            for held, category in zip(ledger.held, self.categories, strict=True)
        ]
        self.owners = ledger.owners()
        self._stretches: dict[Stretch, tuple[Sum, dict[int, None]]] = {}

    def _category(self, held: Held) -> str:
        """What memory was for, by how long it was held."""
        if held.category:
            return held.category
        if held.resized:
            return "communication"
        kind = self.kinds[held.born].kind
        if held.died - held.born <= 1:  # in one pass, with what follows it
            return "communication" if held.sent else "workspace"
        if kind == OPTIMISER:
            return "optimiser" if held.died == NEVER else "workspace"
        if kind == BACKWARD:
            return "gradients"
        return "communication" if kind == BETWEEN and held.sent else "activations"

    def base(self) -> Bytes:
        """Bytes by category that are held when a step begins, once there was one before."""
        found = [0] * len(CATEGORIES)
        for number, held in enumerate(self.ledger.held):
            if held.born == 0 or self.lasting[number]:
                found[self.categories[number]] += held.bytes * held.times
        return found

    def parts(self, start: int, stop: int) -> list[Part]:
        """The events from `start` up to `stop`, block by block."""
        found = [Part("", Sum())]
        for at, event in enumerate(self.ledger.events[start:stop], start):
            if event.what == "part":
                found.append(Part(event.value, Sum()))
            elif event.what == "replay":
                stretch, path = event.value
                found.append(Part(path, renamed(self.stretch(stretch), stretch.path, path)))
                found.append(Part("", Sum()))
            else:
                by = self.owners[at] or event.by or ""
                if not self.owners[at] and (found[-1].path, found[-1].is_after) != (by, True):
                    found.append(Part(by, Sum(), is_after=True))
                self._add(found[-1].sum, event, by)
        return found

    def _add(self, into: Sum, event: Event, by: str | None = None) -> None:
        """Add an event; of memory that one block took for many, for all of them unless it is given
        back `by` a block near to that one.
        """
        if event.what == "flops":
            into.flops += event.value
        elif event.what == "send":
            into.sent[event.value] += 1
        elif event.what in ("take", "give") and not self.lasting[event.value]:
            held = self.ledger.held[event.value]
            is_once = by is None or any(is_in(by, path) for path in held.near)
            size = held.bytes * (1 if is_once else held.times)
            sign = 1 if event.what == "take" else -1
            into.add(self.categories[event.value], sign * size)

    # ---------------------------------------------------------------------------- stretches
    def stretch(self, stretch: Stretch) -> Sum:
        """What a block did in a pass, as a block that is equal does it again.

        What it took for others, or others for it, is in its fullest moment but is not left: that
        happens around every block by itself.
        """
        return self._of_stretch(stretch)[0]

    def _of_stretch(self, stretch: Stretch) -> tuple[Sum, dict[int, None]]:
        """The sum, and the numbers of what the block took for itself."""
        if stretch not in self._stretches:
            self._stretches[stretch] = self._add_up(stretch)
        return self._stretches[stretch]

    def _add_up(self, stretch: Stretch) -> tuple[Sum, dict[int, None]]:
        found = Sum()
        mine = dict.fromkeys(self._taken_in(stretch))
        earlier = {} if stretch.other is None else self._of_stretch(stretch.other)[1]
        lent: Bytes = [0] * len(CATEGORIES)
        for event in self.ledger.events[stretch.start : stretch.stop]:
            if not _is_inside(event, stretch.path):
                continue
            before = found.left.copy()
            self._add(found, event)
            is_memory = event.what in ("take", "give")
            if is_memory and event.value not in mine and event.value not in earlier:
                for i, size in enumerate(found.left):
                    lent[i] += size - before[i]
        for i, size in enumerate(lent):
            found.left[i] -= size
        for number in (*mine, *earlier):
            held = self.ledger.held[number]
            if stretch.stop <= held.given and held.died <= stretch.mark + 1:
                found.left[self.categories[number]] -= held.bytes
        found.total = sum(found.left)
        return found, mine

    def _taken_in(self, stretch: Stretch) -> Iterable[int]:
        """What a block took for itself in a pass, by number."""
        for event in self.ledger.events[stretch.start : stretch.stop]:
            if event.what == "take" and _is_inside(event, stretch.path):
                number = event.value
                is_gradient = self.categories[number] == NUMBER["gradients"]
                if number not in stretch.outside and not is_gradient:
                    yield number


def _is_inside(event: Event, path: str) -> bool:
    """Whether what happened in a pass of the block at `path` was caused by a module of it."""
    return event.by is None or is_in(event.by, path)


def is_in(by: str, path: str) -> bool:
    """Whether the module at `by` is the one at `path`, or lies in it."""
    return f"{by}.".startswith(f"{path}.")


def renamed(found: Sum, path: str, other: str) -> Sum:
    """`found` of the block at `path`, as of the block at `other`."""

    def moved(message: Message) -> Message:
        if not f"{message.module}.".startswith(f"{path}."):
            return message
        return replace(message, module=other + message.module[len(path) :])

    sent = Counter({moved(message): count for message, count in found.sent.items()})
    return replace(found, sent=sent)
