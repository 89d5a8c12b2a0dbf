"""What the ranks of a layout send each other in one optimiser step, as torch hands it on.

A step is that of `train` (`step/stepper.py`), on a recipe at its smallest size. Every collective is
seen where torch dispatches it, whoever asks for it: DTensor, FSDP2, DDP's reducer, torch's pipeline
schedules, or an axis of ours.

Left out are a few numbers that `train` counts beside the gradients, below `LEAST_BYTES`: sums of
loss and count, loads of a router; tensors without a dim, such as a loss or the norm of gradients;
and what a rank says to itself, in a group of one.
"""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from unittest import mock

from armillary.spec import Layout

LEAST_BYTES = 64
NUM_STEPS = 3  # the first set up, compare and sort buckets; the last is recorded
NAMES = {
    "allreduce": "all_reduce",
    "all_reduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "allgather_base": "all_gather_into_tensor",
    "all_gather_into_tensor": "all_gather_into_tensor",
    "reduce_scatter_base": "reduce_scatter_tensor",
    "reduce_scatter_tensor": "reduce_scatter_tensor",
    "alltoall_base": "all_to_all_single",
    "all_to_all_single": "all_to_all_single",
    "send": "send",
    "broadcast": "broadcast",
}
SILENT = (
    "wait_tensor",
    "recv",
    "recv_any_source",
    "barrier",
    "wrap_tensor",
    "wrap_tensor_autograd",
)


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

    groups = groups_of(mesh)

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
    import torch
    import torch.distributed as dist
    from torch.utils._pytree import tree_leaves

    name = op.overloadpacket.__name__.strip("_")
    if name in SILENT:
        return None
    kind = NAMES[name]  # an operator that is not known here must not go unseen
    ranks = tuple(sorted(dist.get_process_group_ranks(_group_of(args, kwargs))))
    if len(ranks) == 1:
        return None
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    sizes = [sum(t.nbytes for t in tree_leaves(a) if isinstance(t, torch.Tensor)) for a in args]
    is_functional = op.namespace == "_c10d_functional"
    whole = sizes[0] if is_functional else max(sizes[:2])  # torch takes what comes out first
    if kind == "all_to_all_single":
        whole = (sizes[0] if is_functional else sizes[1]) * len(ranks)
    elif kind == "all_gather_into_tensor" and is_functional:
        whole *= len(ranks)
    is_number = not any(tensor.ndim for tensor in tensors)
    if not whole or is_number or (_aside and whole < LEAST_BYTES):
        return None
    return Message(kind, groups[ranks], whole)


def _group_of(args: Any, kwargs: Any) -> Any:
    """The process group among the arguments: by its name, or as torch's dispatcher boxes it."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _resolve_process_group

    for value in [*args[::-1], *kwargs.values()]:
        if isinstance(value, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(value)
            except RuntimeError:  # a reduction is boxed as well
                continue
        if isinstance(value, dist.ProcessGroup):
            return value
    names = [value for value in args[::-1] if isinstance(value, str)]
    return _resolve_process_group(names[0])


def groups_of(mesh: Any) -> dict[tuple[int, ...], tuple[str, ...]]:
    """The axes of `mesh` by the ranks that this rank meets along them, alone or flattened."""
    import torch

    names = mesh.mesh_dim_names
    here = mesh.get_coordinate()
    found = {}
    for count in range(1, len(names) + 1):
        for chosen in combinations(range(len(names)), count):
            place = tuple(slice(None) if dim in chosen else here[dim] for dim in range(len(names)))
            ranks = torch.as_tensor(mesh.mesh)[place].flatten().tolist()
            found[tuple(sorted(ranks))] = tuple(names[dim] for dim in chosen)
    return found
