"""What a rank does, written down as it happens: memory taken and given back, work, messages.

Events are noted between marks, which say what pass begins. What memory was for is told afterwards,
when it is known how long it was held.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

FORWARD, BACKWARD, OPTIMISER, BETWEEN = "forward", "backward", "optimiser", "between"
NEVER = 1 << 60
OF_STEP = -1
"""In place of the number of a micro batch: a pass that comes once a step."""


@dataclass(slots=True)
class Held:
    """Memory from when it is taken to when it is given back: which storage, and in which passes.

    `born` and `died` count marks, `given` is the event that gave it back. `sent` says that a
    collective took or filled it, `resized` that it was given back and taken again under the same
    tensor, as gathered parameters are. `times` is how often there is such memory, where a block
    stands for others that were not built; each of these gives its own back in the pass of the
    blocks `near`, and anybody else gives back that of all at once.
    """

    bytes: int
    born: int
    died: int = NEVER
    given: int = NEVER
    sent: bool = False
    resized: bool = False
    category: str = ""
    times: int = 1
    near: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One kind of message, as `spec.Collective` tells it, without its count."""

    collective: str
    group: tuple[str, ...]
    num_ranks: int
    bytes: int
    module: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A pass begins: its kind, its stage and micro batch, and the phase of the step or the kind of
    action that it is.
    """

    kind: str
    stage: int = 0
    micro_batch: int = OF_STEP
    name: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `what` is "take", "give", "flops", "send", "replay" or "part".

    `by` is the path of the module that caused it, where that lies outside of the block under way.
    """

    what: str
    value: Any
    by: str | None = None


@dataclass(slots=True, eq=False)
class Stretch:
    """A pass of one block: its events, from `start` up to `stop` in the ledger, and its path.

    `outside` numbers what was taken inside and belongs to others: tensors handed on, gradients.
    `other` is the stretch of its forward pass, for a backward pass. It began after `mark` marks.
    """

    path: str
    start: int
    mark: int
    stop: int = -1
    outside: set[int] = field(default_factory=set)
    other: "Stretch | None" = None


@dataclass(slots=True)
class Ledger:
    """The events of a step in order, and all memory that was held in it.

    `marks` are those that begin a pass, by the number of the first event after each.
    """

    events: list[Event] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    marks: list[tuple[int, Mark]] = field(default_factory=list)
    causes: list[str | None] = field(default_factory=lambda: [None])
    known: dict[int, int] = field(default_factory=dict)
    watchers: list[Any] = field(default_factory=list)

    def mark(self, mark: Mark) -> None:
        """Note that a pass begins."""
        self.marks.append((len(self.events), mark))

    def note(self, what: str, value: Any) -> None:
        """Note an event of the pass under way."""
        self.events.append(Event(what, value, self.causes[-1]))

    @contextmanager
    def caused_by(self, path: str) -> Iterator[None]:
        """What is noted inside is caused by the module at `path`."""
        self.causes.append(path)
        try:
            yield
        finally:
            self.causes.pop()

    # ------------------------------------------------------------------------------ memory
    def take(self, tensor: torch.Tensor, category: str = "") -> int:
        """The number of what `tensor` holds; noted if it is new."""
        storage = tensor.untyped_storage()
        number = self.known.get(storage._cdata)
        if number is None:
            number = self._begin(storage, storage.nbytes(), category)
            key = storage._cdata
            self.watchers.append(weakref.ref(storage, lambda _: self._end(key)))
        elif category and not self.held[number].category:
            self.held[number].category = category
        return number

    def take_as(self, size: int, category: str, times: int = 1) -> None:
        """Note memory that is held from now on, of which there is no tensor."""
        self.held.append(Held(size, len(self.marks), category=category, times=times))
        self.note("take", len(self.held) - 1)

    def number(self, tensor: torch.Tensor) -> int | None:
        """The number of what `tensor` holds, if it was noted."""
        return self.known.get(tensor.untyped_storage()._cdata)

    def resize(self, storage: torch.UntypedStorage, size: int) -> None:
        """Note that `storage` is given back, or taken again."""
        number = self.known.get(storage._cdata)
        if number is None or self.held[number].bytes == size:
            return
        self.held[number].resized = True
        self._give(number)
        number = self._begin(storage, size, self.held[number].category)
        self.held[number].resized = True

    def _begin(self, storage: torch.UntypedStorage, size: int, category: str) -> int:
        number = len(self.held)
        self.held.append(Held(size, len(self.marks), category=category))
        self.known[storage._cdata] = number
        self.note("take", number)
        return number

    def _end(self, key: int) -> None:
        number = self.known.pop(key, None)
        if number is not None:
            self._give(number)

    def _give(self, number: int) -> None:
        if self.held[number].died == NEVER:
            self.held[number].died = len(self.marks)
            self.held[number].given = len(self.events)
            self.note("give", number)

    def call(self, number: int, category: str) -> None:
        """Say what memory is for."""
        self.held[number].category = category

    def owners(self) -> list[str]:
        """By event, the block up to whose end it belongs, or "" after the last block of a pass."""
        found = [""] * len(self.events)
        passes = iter([*(at for at, _ in self.marks), len(found)])
        following, start, inside = next(passes), 0, ""
        for at, event in enumerate(self.events):
            while at >= following:
                start, following = following, next(passes)
            path = event.value[1] if event.what == "replay" else ""
            if event.what == "part":
                path, inside = ("", event.value) if event.value else (inside, "")
            if path:
                found[start : at + 1] = [path] * (at + 1 - start)
                start = at + 1
        return found

    def close(self) -> None:
        """Hear no more of what is given back."""
        self.watchers.clear()
        self.known.clear()
