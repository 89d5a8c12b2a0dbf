"""What the ranks of a layout send each other in one optimiser step, as torch hands it on.

A step is that of `train` (`step/stepper.py`), on a recipe at its smallest size. Every collective is
seen where torch dispatches it, whoever asks for it: DTensor, FSDP2, DDP's reducer, torch's pipeline
schedules, or an axis of ours.

It is read as a rehearsal reads it (`rehearse/program/messages.py`). Left out are besides a few
numbers that `train` counts beside the gradients, below `LEAST_BYTES`: sums of loss and count, loads
of a router.
"""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from armillary.spec import Layout

LEAST_BYTES = 64
NUM_STEPS = 3  # the first set up, compare and sort buckets; the last is recorded


@dataclass(frozen=True, slots=True)
class Message:
    """One kind of message of a rank: torch's name, the axes of the group, and the local bytes.

    `bytes` is the size of the whole tensor, as `Transfer.bytes` has it, but for a "send", of which
    it is what this rank sends.
    """

    collective: str
    group: tuple[str, ...]
    bytes: int


_aside: list[bool] = []


def _set_aside(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose small messages are bookkeeping."""

    @functools.wraps(function)
    def aside(*args: Any, **kwargs: Any) -> Any:
        _aside.append(True)
        try:
            return function(*args, **kwargs)
        finally:
            _aside.pop()

    return aside


@contextlib.contextmanager
def bookkeeping_aside() -> Iterator[None]:
    """While entered, what `train` counts is marked as such."""
    from armillary.models.experts import BalanceBias
    from armillary.step.world import World

    with contextlib.ExitStack() as stack:
        for owner, name in ((World, "sum"), (BalanceBias, "after_step")):
            marked = _set_aside(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, marked))
        yield


def record(program: Any, words: str) -> Counter[Message]:
    """What one rank sends in the last of some steps of `program` (armillary.verify) on a layout."""
    from armillary.step.world import join
    from armillary.verify.program import start

    layout = Layout.parse(words)
    with join(layout, "cpu") as world, bookkeeping_aside():
        stepper, feed = start(program, layout, world)
        for index, step in enumerate(feed.steps()):
            if index + 1 < NUM_STEPS:
                stepper.run(step, index, stop=False)
                continue
            with recording(world.mesh) as sent:
                stepper.run(step, index, stop=False)
            break
    return sent


def recording(mesh: Any) -> Any:
    """A context that counts what this rank sends to groups of `mesh`.

    torch's CommDebugMode gives every module a copy of what it takes, which changes what is sent.
    """
    from torch.distributed.tensor import DTensor
    from torch.utils._python_dispatch import TorchDispatchMode

    from armillary.rehearse.program.messages import Groups

    groups = Groups(dict(zip(mesh.mesh_dim_names, mesh.mesh.shape, strict=True)))

    class Recording(TorchDispatchMode):
        def __enter__(self) -> Any:
            super().__enter__()
            self.sent: Counter[Message] = Counter()
            return self.sent

        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if any(issubclass(kind, DTensor) for kind in types):
                return NotImplemented  # until it has become what it sends
            if "c10d" in op.namespace:
                message = message_of(op, args, kwargs or {}, groups)
                if message is not None:
                    self.sent[message] += 1
            return op(*args, **(kwargs or {}))

    return Recording()


def message_of(op: Any, args: Any, kwargs: Any, groups: Any) -> Message | None:
    """What an operator of torch.distributed sends; None for what only waits or is too small."""
    from armillary.rehearse.program.messages import sent_by

    sent = sent_by(op, args, kwargs, groups)
    if sent is None or (_aside and sent[3] < LEAST_BYTES):
        return None
    return Message(sent[0], sent[1], sent[3])
