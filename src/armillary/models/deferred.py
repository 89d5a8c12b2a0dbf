"""A model built without memory, and filled later: a tensor at a time, with its serial values.

What `build` does to tensors is written on a tape while they have no memory (torch's meta device).
Played back in order, with the same seed, the tape draws the same random numbers; what was
overwritten before anybody read it only draws them. So a model larger than a rank's memory starts
from the values that it has on one rank, while whole tensors live one at a time.

Source: the idea of a tape is that of torchdistX's deferred initialisation (2022).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

OVERWRITES = {"normal_", "uniform_", "zero_", "fill_", "bernoulli_", "exponential_", "random_"}
"""Operators of aten that write every entry of their first tensor, and read none."""
ALIASES = {"detach", "view", "_unsafe_view", "alias", "t", "transpose", "unsqueeze", "squeeze"}
Form = tuple[torch.Size, tuple[int, ...], torch.dtype]


class NotDeferrable(RuntimeError):
    """The model cannot be built without memory: its code looks at values, or draws them early."""


@dataclass(frozen=True, slots=True)
class _Ref:
    """A tensor on the tape, by number."""

    number: int


@dataclass(slots=True)
class _Entry:
    """One operator as it was called: its tensors by reference."""

    operator: Any
    args: Any
    kwargs: Any
    outputs: list[int]
    storages: set[int]

    @property
    def name(self) -> str:
        packet = getattr(self.operator, "overloadpacket", None)
        return str(packet.__name__) if packet else "constant"


@dataclass(slots=True)
class Deferred:
    """A module on the meta device, and the tape that makes its values."""

    module: nn.Module
    entries: list[_Entry] = field(default_factory=list)
    storage_of: dict[int, int] = field(default_factory=dict)
    names: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    forms: dict[int, Form] = field(default_factory=dict)

    def values(self, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter and buffer by name, whole, on the CPU, one after another."""
        torch.manual_seed(seed)
        last = {s: i for i, entry in enumerate(self.entries) for s in entry.storages}
        begins = {storage: self._last_overwrite(storage) for storage in self.names}
        held: dict[int, torch.Tensor] = {}
        for i, entry in enumerate(self.entries):
            if any(i < begins.get(storage, 0) for storage in entry.storages):
                self._draw_only(entry)
                continue
            for storage in entry.storages:
                if begins.get(storage) == i:
                    self._bring(storage, i, held)
            _play(entry, held)
            for storage in [s for s in entry.storages if last[s] == i]:
                yield from ((name, held[number]) for name, number in self.names.get(storage, ()))
                for number in [n for n in held if self.storage_of[n] == storage]:
                    del held[number]

    def _last_overwrite(self, storage: int) -> int:
        """The entry from which on the values of `storage` count; 0 if all of them may."""
        found = 0
        for i, entry in enumerate(self.entries):
            if storage not in entry.storages:
                continue
            if entry.name in OVERWRITES and self._covers(entry, storage):
                found = i
            elif entry.name not in ALIASES and not entry.name.startswith("empty"):
                break
        return found

    def _covers(self, entry: _Entry, storage: int) -> bool:
        whole = self.sizes[storage]
        return entry.storages == {storage} and self.sizes[entry.args[0].number] == whole

    def _draw_only(self, entry: _Entry) -> None:
        """Draw the random numbers of an entry whose result is overwritten."""
        if entry.name in OVERWRITES:
            target, *rest = entry.args
            size, stride, dtype = self.forms[target.number]
            scratch = torch.empty_strided(size, stride, dtype=dtype)
            entry.operator(scratch, *rest, **_on_cpu(entry.kwargs))

    def _bring(self, storage: int, before: int, held: dict[int, torch.Tensor]) -> None:
        """Make the tensors of `storage`, whose earlier values do not count."""
        for entry in self.entries[:before]:
            if storage in entry.storages and entry.name not in OVERWRITES:
                _play(entry, held)


def defer(build: Callable[[], nn.Module]) -> Deferred:
    """`build()` without memory, on the meta device.

    Raises: `NotDeferrable` if its code needs values while it builds.
    """
    tape = _Tape()
    before = torch.random.get_rng_state()
    try:
        with torch.device("meta"), _Constants(tape), tape, tape.noting_truncated():
            module = build()
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise NotDeferrable(str(error)) from error
    if not torch.equal(before, torch.random.get_rng_state()):
        raise NotDeferrable("random numbers were drawn into real memory")
    named = [*module.named_parameters(), *module.named_buffers()]
    names: dict[int, list[tuple[str, int]]] = {}
    for name, tensor in named:
        if not _is_meta(tensor):
            raise NotDeferrable(f"{name} has memory already")
        number = tape.number(tensor)
        if number is None:
            raise NotDeferrable(f"{name} is not on the tape")
        names.setdefault(tape.storage_of[number], []).append((name, number))
    return Deferred(
        module, tape.entries, tape.storage_of, names, sizes=tape.sizes, forms=tape.forms
    )


class _Tape(TorchDispatchMode):
    """Notes every operator that touches a tensor without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[_Entry] = []
        self.storage_of: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.forms: dict[int, Form] = {}
        self._numbers: dict[tuple[int, Any], int] = {}
        self._storages: dict[int, int] = {}
        self._kept: list[Any] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        touched = [t for t in tree_leaves((args, kwargs, result)) if _is_meta(t)]
        if touched:
            seen = tree_map_only(torch.Tensor, self._refer, (args, kwargs))
            outputs = [self._refer(t).number for t in tree_leaves(result) if _is_meta(t)]
            storages = {self._storage(t) for t in touched}
            self.entries.append(_Entry(function, seen[0], seen[1], outputs, storages))
        return result

    @contextmanager
    def noting_truncated(self) -> Iterator[None]:
        """Note torch's truncated normal as one operator: it draws again until all values fit."""
        draw = nn.init._no_grad_trunc_normal_

        def note(tensor: torch.Tensor, *bounds: Any, **kwargs: Any) -> torch.Tensor:
            if not _is_meta(tensor):
                return draw(tensor, *bounds, **kwargs)
            ref = self._refer(tensor)
            storages = {self._storage(tensor)}
            self.entries.append(_Entry(draw, (ref, *bounds), kwargs, [ref.number], storages))
            return tensor

        nn.init._no_grad_trunc_normal_ = note
        try:
            yield
        finally:
            nn.init._no_grad_trunc_normal_ = draw

    def constant(self, empty: torch.Tensor, value: torch.Tensor) -> None:
        """Note that `empty` stands for `value`."""
        number = self._refer(empty).number
        entry = _Entry(value.clone, (), {}, [number], {self._storage(empty)})
        self.entries.append(entry)

    def number(self, tensor: torch.Tensor) -> int | None:
        """The number of a tensor on the tape, None if it is not there."""
        return self._numbers.get(self._key(tensor))

    def _key(self, tensor: torch.Tensor) -> tuple[int, Any]:
        place = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype)
        return tensor.untyped_storage()._cdata, place

    def _refer(self, tensor: torch.Tensor) -> Any:
        if not _is_meta(tensor):
            return tensor
        key = self._key(tensor)
        if key not in self._numbers:
            number = len(self._numbers)
            self._numbers[key] = number
            self._kept.append(tensor.untyped_storage())  # so that its address is not used again
            storage = self._storage(tensor)
            self.storage_of[number] = storage
            self.sizes[number] = tensor.numel() * tensor.element_size()
            self.forms[number] = (tensor.size(), tensor.stride(), tensor.dtype)
        return _Ref(self._numbers[key])

    def _storage(self, tensor: torch.Tensor) -> int:
        """The storage of a tensor by number, negative, so that no tensor's number is one."""
        address = tensor.untyped_storage()._cdata
        if address not in self._storages:
            number = -1 - len(self._storages)
            self._storages[address] = number
            self.sizes[number] = tensor.untyped_storage().nbytes()
        return self._storages[address]


IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]


class _Constants(TorchFunctionMode):
    """Tensors made of Python's numbers, which no operator makes: they keep their values."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function == IS_META:
            return False  # torch's own init skips what has no memory; here it is noted instead
        if function not in (torch.tensor, torch.as_tensor) or kwargs.get("device") is not None:
            return function(*args, **kwargs)
        value = function(*args, **(kwargs | {"device": "cpu"}))
        if _is_meta(value):
            return value
        with torch._C._DisableTorchDispatch():
            empty = torch.empty_like(value, device="meta")
        self.tape.constant(empty, value)
        return empty


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "meta"


def _play(entry: _Entry, held: dict[int, torch.Tensor]) -> None:
    """Call an operator on real tensors, and hold what it gives."""
    args, kwargs = tree_map_only(_Ref, lambda ref: held[ref.number], (entry.args, entry.kwargs))
    result = entry.operator(*args, **_on_cpu(kwargs))
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    for number, tensor in zip(entry.outputs, tensors, strict=True):
        held[number] = tensor


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs | ({"device": torch.device("cpu")} if kwargs.get("device") is not None else {})
