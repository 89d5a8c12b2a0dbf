"""Equal blocks of a rank: the first and the last of a run are run, the others stand in.

A block that stands in takes and hands on tensors like those of the block that was run, gives its
parameters gradients like theirs, and leaves to the ledger what the other did inside. What is around
a block runs for every one of them: FSDP2 gathers and frees it, DDP adds up its gradients, and the
optimiser steps its parameters.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from armillary.rehearse.program.ledger import Ledger, Stretch
from armillary.rehearse.program.like import Like, key_of, plain
from armillary.rehearse.program.repeats import CannotFold
from armillary.rehearse.program.watching import Watching


class Run:
    """A run of equal blocks on one rank, and what those did that were run last.

    `keeps_inputs` says that what a block takes is kept for its backward pass whatever it does with
    it, as where it is computed again; `folds` whether blocks stand in for each other.
    """

    def __init__(
        self, ledger: Ledger, watching: Watching, *, keeps_inputs: bool, folds: bool
    ) -> None:
        self.ledger, self.watching = ledger, watching
        self.keeps_inputs, self.folds = keeps_inputs, folds
        self.key: Any = None
        self.forward: Stretch | None = None
        self.backward: Stretch | None = None
        self.output: Any = None  # as it is handed on, with a `Like` for every tensor
        self.kept: list[bool] = []
        self.gradients: dict[str, Like] = {}
        self.input_gradients: list[Like | None] = []
        self.under_way: list[str] = []
        self.blocks: Sequence[tuple[str, nn.Module]] = ()
        self.standing: list[tuple[nn.Module, nn.Module]] = []  # beside the last, which is run

    def hold(self, blocks: Sequence[tuple[str, nn.Module]]) -> None:
        """Have these blocks run or stand in, from their next forward pass on."""
        self.blocks = blocks
        for i, (path, block) in enumerate(blocks):
            is_run = not self.folds or i == 0 or i == len(blocks) - 1
            if not is_run:
                self.standing.append((block, blocks[-1][1]))
            call: Callable[..., Any] = self._run if is_run else self._stand_in
            block.__dict__["forward"] = functools.partial(call, path, block, block.forward)

    # -------------------------------------------------------------------------------- run
    def _run(self, path: str, block: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if path in self.under_way or not torch.is_grad_enabled():
            return forward(*args, **kwargs)  # computed again, inside of its backward pass
        leaves, spec = tree_flatten((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        flowing = [leaf for leaf in inputs if leaf.requires_grad]
        stretch = self.begin(path)
        entered = iter(_Enter.apply(self, stretch, *flowing) if flowing else ())
        leaves = [
            next(entered) if isinstance(x, torch.Tensor) and x.requires_grad else x for x in leaves
        ]
        args, kwargs = tree_unflatten(leaves, spec)
        kept: set[int] = set()
        hooks = self._note_gradients(block, stretch)
        with self._noting_kept(kept):
            output = forward(*args, **kwargs)
        tensors = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor)]
        self.end(stretch, tensors)
        self.forward, self.output = stretch, tree_map_only(torch.Tensor, Like.of, output)
        self.kept = [self.keeps_inputs or _storage(t) in kept for t in inputs]
        self.key = key_of(inputs) if flowing and any(t.requires_grad for t in tensors) else None
        if self.key is None:  # its backward pass has no end that could be seen
            return output
        left = iter(_Leave.apply(self, stretch, hooks, *tensors))
        return tree_map_only(torch.Tensor, lambda _: next(left), output)

    def begin(self, path: str, other: Stretch | None = None) -> Stretch:
        """A pass of the block at `path` begins."""
        self.ledger.note("part", path)
        self.under_way.append(path)
        self.watching.block = path
        return Stretch(path, len(self.ledger.events), len(self.ledger.marks), other=other)

    def end(self, stretch: Stretch, handed: Sequence[Any]) -> None:
        """It ends, and hands out these tensors."""
        numbers = (self.ledger.number(plain(t)) for t in handed if t is not None)
        stretch.outside |= {number for number in numbers if number is not None}
        stretch.stop = len(self.ledger.events)
        self.under_way.remove(stretch.path)
        self.watching.block = ""
        self.ledger.note("part", "")

    @contextlib.contextmanager
    def telling(self, path: str) -> Iterator[None]:
        """A context in which the block at `path` does what no other will stand in for."""
        stretch = self.begin(path)
        yield
        self.end(stretch, ())

    def _note_gradients(self, block: nn.Module, forward: Stretch) -> list[Any]:
        """Hooks that note what the gradients of the block's parameters are like."""

        def note(name: str, gradient: Any) -> None:
            self.gradients[name] = Like.of(gradient)
            number = self.ledger.number(plain(gradient))
            if number is not None and self.backward is not None:
                self.backward.outside.add(number)

        return [
            parameter.register_hook(functools.partial(note, name))
            for name, parameter in block.named_parameters()
            if parameter.requires_grad
        ]

    @contextlib.contextmanager
    def _noting_kept(self, kept: set[int]) -> Iterator[None]:
        """A context in which the storages are noted that autograd keeps for the backward pass."""
        if self.keeps_inputs or not self.folds:
            yield
            return

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.add(_storage(tensor))
            return tensor.detach()  # what is handed on would hold itself

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    # --------------------------------------------------------------------------- stand in
    def _stand_in(
        self, path: str, block: nn.Module, forward: Any, *args: Any, **kwargs: Any
    ) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        is_run = path in self.under_way or not torch.is_grad_enabled()
        if is_run or self.forward is None or self.key != key_of(inputs):
            return self._run(path, block, forward, *args, **kwargs)
        self.ledger.note("replay", (self.forward, path))
        first = next(i for i, tensor in enumerate(inputs) if tensor.requires_grad)
        units = own_units(block)
        own = {id(p) for unit in units for p in unit.parameters()}
        for name, parameter in block.named_parameters():
            if parameter.requires_grad:
                like = Like.of(parameter) if id(parameter) in own else None
                inputs[first] = _Weigh.apply(self, name, like, inputs[first], parameter)
        handed = iter(_StandIn.apply(self, path, units, *inputs))
        return tree_map_only(Like, lambda _: next(handed), self.output)


class _Enter(torch.autograd.Function):
    """The identity on what a block takes; its backward pass ends that of the block."""

    @staticmethod
    def forward(ctx: Any, run: Run, stretch: Stretch, *inputs: Any) -> Any:
        ctx.run = run
        return tuple(tensor.view_as(tensor) for tensor in inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        run: Run = ctx.run
        run.input_gradients = [None if g is None else Like.of(g) for g in gradients]
        assert run.backward is not None
        run.end(run.backward, gradients)
        return None, None, *gradients


class _Leave(torch.autograd.Function):
    """The identity on what a block hands on; its backward pass begins that of the block."""

    @staticmethod
    def forward(ctx: Any, run: Run, stretch: Stretch, hooks: list[Any], *outputs: Any) -> Any:
        ctx.run, ctx.stretch, ctx.hooks = run, stretch, hooks
        fixed = [tensor for tensor in outputs if not tensor.dtype.is_floating_point]
        ctx.mark_non_differentiable(*fixed)
        return tuple(tensor.view_as(tensor) for tensor in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        run: Run = ctx.run
        run.backward = run.begin(ctx.stretch.path, other=ctx.stretch)
        return None, None, None, *gradients


class _Weigh(torch.autograd.Function):
    """The identity on a tensor; its backward pass gives a parameter a gradient besides."""

    @staticmethod
    def forward(ctx: Any, run: Run, name: str, like: Like | None, x: Any, parameter: Any) -> Any:
        ctx.run, ctx.name, ctx.like = run, name, like
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        like = ctx.like or ctx.run.gradients.get(ctx.name)
        return None, None, None, gradients[0], None if like is None else like.make()


class _StandIn(torch.autograd.Function):
    """What the block of a run hands on, and what flows back through it, without what is inside."""

    @staticmethod
    def forward(ctx: Any, run: Run, path: str, units: Any, *inputs: Any) -> Any:
        ctx.run, ctx.path, ctx.units = run, path, units
        ctx.flows = [tensor.requires_grad for tensor in inputs]
        # not saved as autograd does it: to unpack that might compute the block again
        ctx.kept = [t for t, kept in zip(inputs, run.kept, strict=True) if kept]
        likes = [like for like in tree_leaves(run.output) if isinstance(like, Like)]
        made = [like.make() for like in likes]
        fixed = [t for t, like in zip(made, likes, strict=True) if not like.requires_grad]
        ctx.mark_non_differentiable(*fixed)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        run: Run = ctx.run
        ctx.kept = None
        if run.backward is None or len(run.input_gradients) != sum(ctx.flows):
            raise CannotFold(ctx.path)
        with _gathered(ctx.units):
            run.ledger.note("replay", (run.backward, ctx.path))
        likes = iter(run.input_gradients)
        found = [next(likes) if flows else None for flows in ctx.flows]
        return None, None, None, *(None if like is None else like.make() for like in found)


def _storage(tensor: Any) -> int:
    return int(plain(tensor).untyped_storage()._cdata)


def own_units(block: nn.Module) -> list[Any]:
    """The units of FSDP within `block`, which hold shards of their own."""
    return [part for part in block.modules() if isinstance(part, FSDPModule) and part is not block]


@contextlib.contextmanager
def _gathered(units: Sequence[Any]) -> Iterator[None]:
    """A context in which units within a block are gathered for its backward pass.

    Where they run, FSDP gathers them ahead of the block's own pass, so it is no part of what the
    block does.
    """
    groups = [group for unit in units for group in unit._get_fsdp_state()._fsdp_param_groups]
    groups = [group for group in groups if group._reshard_after_forward and group.is_sharded]
    for group in groups:
        group.unshard()
        group.wait_for_unshard()
    yield
    for group in groups:
        group.reshard()
