"""Watches a step op by op: what each reads, writes and computes, and what autograd keeps for it.

Ops of the backward pass are counted with the op of the forward pass whose gradient they compute,
by the number that autograd gives both.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from armillary.models.cost.event import Event
from armillary.models.cost.formulas import (
    FREE,
    GATHERS,
    KERNELS,
    OF_SHAPE,
    ROWS_ONLY,
    UNREAD,
    flops_of,
    kind_of,
    product_of,
    tensors_of,
    touched_bytes,
)
from armillary.spec import ModelGraph

BY_ROLE = {
    "column": ("columns", "all"),
    "head": ("columns", "words"),
    "row": ("inner", ""),
    "vocabulary": ("words", ""),
    "inside": ("all", "all"),
}
"""By the kind of a split: what is divided of the op that uses it, and of what takes its result."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class _Held:
    """What autograd keeps in a tensor's place, for as long as it would keep the tensor."""

    tensor: torch.Tensor


@dataclass(slots=True)
class _Kept:
    """A tensor that autograd kept: its storage, and the op that made it do so."""

    held: "weakref.ref[_Held]"
    storage: int
    num_bytes: int
    is_unscaled: bool
    event: int


@dataclass(slots=True)
class Where:
    """Where in the model the step is: modules entered, the block, and how many blocks began."""

    stack: list[str] = field(default_factory=list)
    block: str = ""
    after: int = 0

    @property
    def path(self) -> str:
        """The innermost module that runs."""
        return self.stack[-1] if self.stack else ""


class Recorder(TorchDispatchMode):
    """The events of a step, in order."""

    def __init__(self, where: Where, parameters: dict[int, str], graph: ModelGraph) -> None:
        super().__init__()
        self.where, self.parameters = where, parameters
        self.roles: dict[str, set[str]] = {}
        for split in graph.splits:
            self.roles.setdefault(split.path, set()).add(split.kind)
        self.routed = {routed.path for routed in graph.routed}
        self.events: list[Event] = []
        self.by_sequence: dict[int, int] = {}
        self.last_sequence, self.is_backward, self.num_pauses = -1, False, 0
        self.makers: dict[int, tuple[int, int]] = {}
        self.storages: list[Any] = []  # held, so that no number is given twice
        self.kept: list[_Kept] = []
        self.seen: set[int] = set()
        self.elsewhere: set[int] = set()
        self.cuts: dict[int, str] = {}
        self.last_event = -1

    # --------------------------------------------------------------------------- what is called
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if not self.num_pauses and function.namespace not in ("prim", "prims"):
            self._note(function, args, kwargs or {}, out)
        return out

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is noted as long as the context lasts."""
        self.num_pauses += 1
        try:
            yield
        finally:
            self.num_pauses -= 1

    def key(self, tensor: torch.Tensor) -> int:
        """A number for the memory that a tensor lies in."""
        storage = tensor.untyped_storage()
        number: int = storage._cdata
        if number not in self.makers and number not in self.parameters:
            self.storages.append(storage)
            self.makers[number] = (-1, 0)
        return number

    def _note(self, function: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = function.overloadpacket.__name__
        outputs = tensors_of(out)
        if not outputs or name in FREE:
            return
        taken = tensors_of((args, kwargs))
        keys = {self.key(tensor) for tensor in taken}
        is_alias = all(self.key(tensor) in keys for tensor in outputs)
        is_written = is_alias and function._schema.is_mutable
        is_view = is_alias and not is_written
        if self.is_backward:
            if not is_view:
                self._note_backward(name, args, taken, outputs, out, is_written)
            return
        event = self.begin(name, kind_of(name))
        event.positions = max((tensor.numel() for tensor in outputs), default=0)
        if is_view:
            event.num_kernels = 0
            self.mark(event, taken, outputs)
            return
        event.num_kernels = KERNELS.get(name, 1)
        event.product = product_of(name, args, out)
        event.sizes["flops"] = flops_of(name, args, out)
        self._read(event, "read_bytes", name, taken, outputs, is_written)
        self.give(event, outputs if not is_written else outputs[:1])
        self.mark(event, taken, outputs)

    def begin(self, name: str, kind: str) -> Event:
        """A new event here, which answers for the gradients of autograd's latest number."""
        where = self.where
        event = Event(where.path, where.block, where.after, name, kind)
        self.events.append(event)
        sequence = _sequence()
        if sequence != self.last_sequence:
            self.by_sequence[sequence] = len(self.events) - 1
            self.last_sequence = sequence
        return event

    def give(self, event: Event, outputs: list[torch.Tensor]) -> None:
        """What `event`, the latest, writes."""
        for tensor in outputs:
            event.add("written_bytes", tensor.nbytes)
        self.own(outputs)

    def own(self, outputs: list[torch.Tensor]) -> None:
        """These were made by the latest event."""
        for place, tensor in enumerate(outputs):
            key = self.key(tensor)
            if key not in self.parameters and self.makers[key][0] < 0:
                self.makers[key] = (len(self.events) - 1, place)

    def mark(self, event: Event, taken: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """Say what the tensor axis divides of `event`, and whether it is an expert's work."""
        if self.where.path in self.routed and outputs[0].ndim == 2:
            is_shared = event.name in ("sum", *OF_SHAPE) or not outputs[0].is_floating_point()
            event.experts = event.kind in ("matmul", "stream") and not is_shared
        names = {label.partition("@")[0] for label in event.weights}
        roles = {role for name in names for role in self.roles.get(name, ())}
        roles -= {"head"} if event.kind == "gather" else {"vocabulary"}
        met = next((cut for t in taken if (cut := self.cuts.get(self.key(t)))), "")
        role = next((role for role in BY_ROLE if role in roles), "")
        if role:
            event.cut, met = BY_ROLE[role]
        elif met:
            is_product = event.kind in ("matmul", "attention", "convolution")
            event.cut = "batch" if is_product else met
        for tensor in outputs if met else ():
            self.cuts[self.key(tensor)] = met

    def _read(
        self,
        event: Event,
        size: str,
        name: str,
        taken: list[torch.Tensor],
        outputs: list[torch.Tensor],
        is_written: bool,
    ) -> None:
        """Count what an op reads, each tensor once, parameters apart."""
        found: dict[tuple[int, int], torch.Tensor] = {}
        for place, tensor in enumerate(taken if name not in OF_SHAPE else ()):
            if place == 0 and name in GATHERS and is_written:
                continue  # of what it is written into, only the rows are touched
            found.setdefault((self.key(tensor), int(tensor.storage_offset())), tensor)
        for (key, offset), tensor in found.items():
            if key in self.parameters:
                if size == "read_bytes":
                    label = f"{self.parameters[key]}@{offset}"
                    event.weights[label] = tensor.numel() * tensor.element_size()
            elif name not in UNREAD or tensor is not taken[UNREAD[name]]:
                event.add(size, touched_bytes(tensor))
        if name in ROWS_ONLY:
            event.add(size, sum(tensor.nbytes for tensor in outputs))

    def _note_backward(
        self,
        name: str,
        args: Any,
        taken: list[torch.Tensor],
        outputs: list[torch.Tensor],
        out: Any,
        is_written: bool,
    ) -> None:
        node = torch._C._current_autograd_node()
        found = self.by_sequence.get(node._sequence_nr()) if node is not None else None
        self.last_event = self.last_event if found is None else found
        if self.last_event < 0:
            return
        event = self.events[self.last_event]
        event.num_backward_kernels += KERNELS.get(name, 1)
        event.add("backward_flops", flops_of(name, args, out))
        self._read(event, "backward_read_bytes", name, taken, outputs, is_written)
        for tensor in outputs[:1] if is_written else outputs:
            event.add("backward_written_bytes", tensor.nbytes)

    # --------------------------------------------------------------------------- what is kept
    def pack(self, tensor: torch.Tensor) -> _Held:
        """Autograd keeps `tensor` for the backward of the op whose number is the latest."""
        held = _Held(tensor)
        key = self.key(tensor)
        if key in self.parameters:
            return held
        maker, place = self.makers[key]
        if maker < 0:  # what the step takes is there anyway
            return held
        self.seen.add(key)
        sequence = _sequence()
        event = self.by_sequence.get(sequence, len(self.events))  # else the op that comes next
        name = self.events[maker].name
        is_statistic = place > 0 and ("norm" in name or self.events[maker].kind == "attention")
        is_unscaled = is_statistic or not tensor.dtype.is_floating_point
        is_unscaled &= not tensor.dtype.is_complex
        size = tensor.untyped_storage().nbytes()
        self.kept.append(_Kept(weakref.ref(held), key, size, is_unscaled, event))
        return held

    def keep_again(self, tensor: torch.Tensor) -> None:
        """`tensor` stands for one that is kept by a block which was watched, and counted there."""
        self.seen.add(self.key(tensor))
        self.elsewhere.add(self.key(tensor))

    @staticmethod
    def unpack(held: _Held) -> torch.Tensor:
        """The tensor again."""
        return held.tensor

    def settle(self, shared: set[int]) -> None:
        """Count what is still kept when the forward pass has ended, each storage once.

        What several blocks take, `shared`, is counted with the op that made it.
        """
        counted = set(self.elsewhere)
        for kept in self.kept:
            if kept.held() is None or kept.storage in counted:
                continue
            counted.add(kept.storage)
            number = self.makers[kept.storage][0] if kept.storage in shared else kept.event
            event = self.events[min(number, len(self.events) - 1)]
            event.add("saved_bytes", kept.num_bytes)
            if kept.is_unscaled:
                event.add("unscaled_saved_bytes", kept.num_bytes)


def _sequence() -> int:
    number: int = torch.autograd._get_sequence_nr() - 1
    return number


@contextmanager
def pausing(recorder: Recorder | None) -> Iterator[None]:
    """`recorder`, if there is one, notes nothing as long as the context lasts."""
    if recorder is None:
        yield
        return
    with recorder.paused():
        yield
