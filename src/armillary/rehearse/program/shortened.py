"""A long run of equal blocks built short: a few of them stand for all, whatever is around them.

Blocks that stand in (`blocks.py`) still have their parameters sharded, gathered and reduced one by
one. Where all that a step does between two blocks is the same for each, most blocks need not be
there: a run keeps its first and its last four, and the events from the end of one block to the end
of the next are told as often as there are blocks. The fourth block of a run is the one that is told
again; the fifth must have done the same.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from armillary.axes.door import parts as parts_of
from armillary.rehearse.program.ledger import Ledger, Message
from armillary.rehearse.program.like import Like
from armillary.rehearse.program.repeats import CannotFold, without
from armillary.rehearse.program.sums import Part, is_in
from armillary.spec import ModelGraph

FAR = 2
"""Blocks: FSDP2 holds what it gathered and reduced until one or two blocks later (torch 2.13)."""
NUM_ENDS = FAR + 2
"""Blocks kept at either end, so that two in the middle see nothing of the ends. And the first two
may be run where the others stand in, for the first may take what needs no gradient: what the second
hands on is then noted before it ends, that of the third after.
"""


@dataclass(frozen=True, slots=True)
class Short:
    """A run of equal blocks, of which only those at its ends were built."""

    paths: tuple[str, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """The blocks that are there, in order."""
        return (*self.paths[:NUM_ENDS], *self.paths[-NUM_ENDS:])

    @property
    def left_out(self) -> tuple[str, ...]:
        """The blocks that are not."""
        return self.paths[NUM_ENDS:-NUM_ENDS]

    @property
    def told_again(self) -> str:
        """The block that stands for all that were left out."""
        return self.paths[NUM_ENDS - 1]

    @property
    def near(self) -> tuple[str, ...]:
        """It and the blocks around it, in whose pass what it holds may be given back."""
        return self.kept[NUM_ENDS - 1 - FAR : NUM_ENDS + FAR]

    @property
    def times(self) -> int:
        """How many blocks it stands for, itself among them."""
        return 1 + len(self.left_out)


@dataclass(frozen=True, slots=True)
class Shortening:
    """Takes the blocks from a module that others stand for; `shorts` are the runs of which it did.

    In their places what comes in goes on.
    """

    runs: Sequence[Sequence[str]]
    shorts: list[Short] = field(default_factory=list)

    def __call__(self, module: nn.Module, graph: ModelGraph) -> ModelGraph:
        """`graph` without the blocks that are taken from `module`, and from its stages."""
        for part in parts_of(module):
            here = dict(part.named_modules())
            for run in self.runs:
                held = tuple(path for path in run if is_here(here.get(path)))
                if len(held) > 2 * NUM_ENDS:
                    self.shorts.append(Short(held))
                    _leave_out({id(m): m for m in (module, part)}.values(), self.shorts[-1])
        return without(graph, {path for short in self.shorts for path in short.left_out})


def is_here(block: nn.Module | None) -> bool:
    """Whether a block is one of this rank's, and was not left out."""
    return block is not None and any(True for _ in block.parameters())


def _leave_out(modules: Iterable[nn.Module], short: Short) -> None:
    through = _Through()
    for i, module in enumerate(modules):
        if i == 0:
            module.get_submodule(short.told_again).register_forward_hook(through.look)
        for path in short.left_out:
            above, _, name = path.rpartition(".")
            module.get_submodule(above)._modules[name] = through


class _Through(nn.Module):
    """Hands on what it takes, in the form in which another block hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: Any = None

    def look(self, block: nn.Module, args: Any, output: Any) -> None:
        """Note what the other hands out."""
        self.handed = tree_map_only(torch.Tensor, Like.of, output)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        waiting = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]

        def handed(like: Like) -> torch.Tensor:
            for i, taken in enumerate(waiting):
                if (taken.dtype, Like.of(taken).shape) == (like.dtype, like.shape):
                    return waiting.pop(i)
            raise CannotFold("a block hands on what it was not given")

        return tree_map_only(Like, handed, self.handed)


def note_times(ledger: Ledger, shorts: Iterable[Short]) -> None:
    """Say of what was taken for a block that is told again how many times there is of it."""
    told = {short.told_again: short for short in shorts}
    for event, path in zip(ledger.events, ledger.owners(), strict=True):
        if told and event.what == "take" and (by := path or event.by):
            short = next((short for block, short in told.items() if is_in(by, block)), None)
            if short is not None:
                held = ledger.held[event.value]
                held.times, held.near = short.times, short.near


# ------------------------------------------------------------------------------------- telling
def told_again(parts: Sequence[Part], short: Short) -> list[Part]:
    """`parts` of a pass with those of the blocks that were left out, under their own paths.

    Raises: `CannotFold` if two blocks in the middle did not do the same.
    """
    groups, rest = _by_block(parts)
    order = [path for path, _ in groups if path in short.kept]
    rest = _rest_again(rest, short)
    if not order:
        return [part for _, group in groups for part in group] + rest
    inside = dict(groups)
    again, check = (inside.get(path, []) for path in short.kept[NUM_ENDS - 1 : NUM_ENDS + 1])
    _check_alike(again, check, short)
    is_backward = order == [*short.kept[::-1]]
    if not is_backward and order != [*short.kept]:
        raise CannotFold(short.told_again)
    shifts = range(short.times)
    found: list[Part] = []
    for path, group in groups:
        fars: Sequence[int] = (len(short.left_out),)
        if path == short.told_again:
            fars = shifts[::-1] if is_backward else shifts
        elif path not in short.kept[NUM_ENDS:]:
            fars = (0,)
        found += [_moved(part, short, far) for far in fars for part in group]
    return found + rest


def _rest_again(rest: Sequence[Part], short: Short) -> list[Part]:
    """What was done after the last block of a pass, as when a pipeline reduces gradients, with that
    of the blocks that were left out.
    """
    again, check = (
        [part for part in rest if is_in(part.path, path)]
        for path in short.kept[NUM_ENDS - 1 : NUM_ENDS + 1]
    )
    _check_alike(again, check, short)
    told = {id(part) for part in again}
    return [
        _moved(part, short, far) if id(part) in told else part
        for part in rest
        for far in range(short.times if id(part) in told else 1)
    ]


def _check_alike(again: Sequence[Part], check: Sequence[Part], short: Short) -> None:
    if [_moved(p, short, 1) for p in again] != [_moved(p, short, 0) for p in check]:
        raise CannotFold(short.told_again)


def _by_block(parts: Sequence[Part]) -> tuple[list[tuple[str, list[Part]]], list[Part]]:
    """The parts that end with each block, in order, and those after the last."""
    groups: list[tuple[str, list[Part]]] = []
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if part.path and not part.is_after:
            groups.append((part.path, group))
            group = []
    return groups, group


def _moved(part: Part, short: Short, far: int) -> Part:
    """`part` as it is where every block that is there is `far` blocks further on in the run, were
    those that are left out not between them.
    """
    other = {path: short.paths[i + far] for i, path in enumerate(short.kept)}

    def named(path: str) -> str:
        block = next((b for b in other if is_in(path, b)), None)
        return path if block is None else other[block] + path[len(block) :]

    sent: Counter[Message] = Counter()
    for message, count in part.sum.sent.items():
        sent[replace(message, module=named(message.module))] += count
    return replace(part, path=named(part.path), sum=replace(part.sum, sent=sent))
