"""Equal blocks watched once: the second and later ones give what the first gave, without its ops.

Two blocks are equal if their modules are, part by part, and what they take has the same shapes.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from armillary.models.cost.recorder import Recorder, Where

Key = tuple[Any, ...]
STATE = vars(nn.Module()).keys()
"""What every module has of its own: its parts, parameters, buffers and hooks, told apart."""


def structure(module: nn.Module, say: Callable[[Any], Any] | None = None) -> Key:
    """What makes two modules equal: classes, attributes, shapes of parameters and buffers.

    `say` gives of an attribute what must be equal; as it is, or for what has no value the very
    same object, without it.
    """
    say = say or _value
    parts = []
    for path, part in module.named_modules():
        own = tuple((name, say(vars(part)[name])) for name in sorted(vars(part).keys() - STATE))
        held = tuple(
            (name, tuple(t.shape), t.dtype, t.requires_grad)
            for name, t in (
                *part.named_parameters(recurse=False),
                *part.named_buffers(recurse=False),
            )
        )
        hooks = (len(part._forward_hooks), len(part._forward_pre_hooks))
        parts.append((path, say(type(part)), own, held, hooks, part.extra_repr()))
    return tuple(parts)


def _value(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_value, value))
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, (int, float, str, bytes, type(None), torch.dtype, torch.device, type)):
        return value
    return "reference" if isinstance(value, weakref.ref) else id(value)


@dataclass(slots=True)
class _First:
    """The first of some equal blocks: what it took and gave, and the blocks like it."""

    path: str
    paths: list[str]
    taken: tuple[int, ...]
    is_taken_kept: tuple[bool, ...]
    leaves: list[Any] = field(default_factory=list)
    spec: TreeSpec | None = None
    is_kept: list[bool] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)


def _sign(leaf: Any) -> Any:
    """What of an argument makes two calls equal."""
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.requires_grad
    return _value(leaf)


class Blocks:
    """The blocks of a step: which are equal, and what they share."""

    def __init__(self, recorder: Recorder, where: Where, *, folds: bool) -> None:
        self.recorder, self.where, self.folds = recorder, where, folds
        self.firsts: dict[Key, list[_First]] = {}
        self.taken: Counter[int] = Counter()
        self.groups: list[_First] = []

    @contextmanager
    def watching(self, module: nn.Module, paths: Sequence[str]) -> Any:
        """The blocks at `paths` are told apart as long as the context lasts."""
        changed: list[nn.Module] = []
        try:
            for path in paths:
                block = module.get_submodule(path)
                block.forward = self._wrapped(path, block, structure(block))
                changed.append(block)
            yield
        finally:
            for block in changed:
                del block.forward

    def _wrapped(self, path: str, block: nn.Module, kind: Key) -> Callable[..., Any]:
        run = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.where.after += 1
            leaves, spec = tree_flatten((args, kwargs))
            alike = self.firsts.setdefault((kind, spec, tuple(map(_sign, leaves))), [])
            memories, is_kept = self._memories(leaves)
            self.taken.update(set(memories))
            for first in alike if self.folds else ():
                if self._fits(first, memories, is_kept):
                    first.paths.append(path)
                    return self._again(first, leaves)
            first = _First(path, [path], memories, is_kept)
            alike.append(first)
            self.groups.append(first)
            outside, self.where.block = self.where.block, path
            try:
                given = run(*args, **kwargs)
            finally:
                self.where.block = outside
            self._note(first, leaves, given)
            return given

        return forward

    @property
    def shared(self) -> set[int]:
        """The memories that several blocks take."""
        return {memory for memory, times in self.taken.items() if times > 1}

    def _memories(self, leaves: list[Any]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """For every argument a number of its memory, and whether autograd keeps it already."""
        memories = tuple(
            self.recorder.key(leaf) if isinstance(leaf, torch.Tensor) else 0 for leaf in leaves
        )
        return memories, tuple(memory in self.recorder.seen for memory in memories)

    def _fits(self, first: _First, memories: Key, is_kept: Key) -> bool:
        """Whether a call keeps anew what the first kept anew; what is the same is kept once."""
        calls = zip(first.taken, first.is_taken_kept, memories, is_kept, strict=True)
        return all(one == two or was == now for one, was, two, now in calls)

    def _note(self, first: _First, taken: list[Any], given: Any) -> None:
        first.leaves, first.spec = tree_flatten(given)
        for leaf in first.leaves:
            is_tensor = isinstance(leaf, torch.Tensor)
            first.is_kept.append(is_tensor and self.recorder.key(leaf) in self.recorder.seen)
            same = [i for i, other in enumerate(taken) if other is leaf]
            first.sources.append(same[0] if same else -1)

    def _again(self, first: _First, taken: list[Any]) -> Any:
        """What the first block gave, as if made of what this one takes."""
        tensors = [leaf for leaf in taken if isinstance(leaf, torch.Tensor)]
        wanted = [
            leaf
            for leaf, source in zip(first.leaves, first.sources, strict=True)
            if source < 0 and isinstance(leaf, torch.Tensor)
        ]
        made = iter(_Again.apply(self.recorder, wanted, *tensors) if wanted else ())
        leaves = []
        for leaf, source, is_kept in zip(first.leaves, first.sources, first.is_kept, strict=True):
            if source >= 0:
                leaf = taken[source]
            elif isinstance(leaf, torch.Tensor):
                leaf = next(made)
                if is_kept:
                    self.recorder.keep_again(leaf)
            leaves.append(leaf)
        assert first.spec is not None
        return tree_unflatten(leaves, first.spec)


class _Again(torch.autograd.Function):
    """Tensors like those that an equal block gave."""

    @staticmethod
    def forward(ctx: Any, recorder: Recorder, wanted: Any, *taken: Any) -> Any:
        ctx.recorder, ctx.forms = recorder, [(t.shape, t.dtype) for t in taken]
        ctx.device = taken[0].device if taken else "cpu"
        with recorder.paused():
            made = [
                torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
                for t in wanted
            ]
        recorder.own(made)
        whole = [m for m, t in zip(made, wanted, strict=True) if not t.requires_grad]
        ctx.mark_non_differentiable(*whole)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        made = []
        with ctx.recorder.paused():
            for i, (shape, dtype) in enumerate(ctx.forms):
                wants = ctx.needs_input_grad[i + 2]
                made.append(torch.empty(shape, dtype=dtype, device=ctx.device) if wants else None)
        return None, None, *made
