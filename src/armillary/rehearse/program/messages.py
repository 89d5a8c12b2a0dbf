"""What a rank sends, as torch hands it on: kind, group and bytes of every collective.

Every message is seen where torch dispatches it, whoever asks for it: DTensor, FSDP2, DDP's reducer,
torch's pipeline schedules, or an axis of ours. Left out are tensors without a dim, such as a loss
or the norm of gradients, and what a rank says to itself, in a group of one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

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


class Groups:
    """The process groups of a mesh, told by the axes whose ranks take part."""

    def __init__(self, degrees: Mapping[str, int]) -> None:
        self.axes = tuple(axis for axis, degree in degrees.items() if degree > 1)
        self.shape = tuple(degrees[axis] for axis in self.axes)
        self._known: dict[str, tuple[tuple[str, ...], int]] = {}

    def of(self, group: Any) -> tuple[tuple[str, ...], int]:
        """The axes along which the ranks of `group` differ, outermost first, and their number."""
        name = group.group_name
        if name not in self._known:
            ranks = np.asarray(dist.get_process_group_ranks(group))
            places = np.unravel_index(ranks, self.shape) if self.shape else ()
            axes = (a for a, at in zip(self.axes, places, strict=True) if (at != at[0]).any())
            self._known[name] = tuple(axes), len(ranks)
        return self._known[name]


def sent_by(
    operator: Any, args: Any, kwargs: Any, groups: Groups
) -> tuple[str, tuple[str, ...], int, int] | None:
    """What an operator of torch.distributed sends: collective, axes, ranks of the group, and bytes
    of the whole tensor, or of a "send" those sent; None for what only waits.
    """
    name = operator.overloadpacket.__name__.strip("_")
    if name in SILENT:
        return None
    kind = NAMES[name]  # an operator that is not known here must not go unseen
    axes, num_ranks = groups.of(_group_of(args, kwargs))
    if num_ranks == 1:
        return None
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
    sizes = [sum(t.nbytes for t in tree_leaves(a) if isinstance(t, torch.Tensor)) for a in args]
    is_functional = operator.namespace == "_c10d_functional"
    whole = sizes[0] if is_functional else max(sizes[:2])  # torch takes what comes out first
    if kind == "all_to_all_single":
        whole = (sizes[0] if is_functional else sizes[1]) * num_ranks
    elif kind == "all_gather_into_tensor" and is_functional:
        whole *= num_ranks
    if not whole or not any(tensor.ndim for tensor in tensors):
        return None
    return kind, axes, num_ranks, whole


def _group_of(args: Any, kwargs: Any) -> Any:
    """The process group among the arguments: by its name, or as torch's dispatcher boxes it."""
    from torch.distributed.distributed_c10d import _resolve_process_group

    for value in [*args[::-1], *kwargs.values()]:
        if isinstance(value, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(value)
            except RuntimeError:  # a reduction is boxed as well
                continue
        if isinstance(value, dist.ProcessGroup):
            return value
    names: list[Any] = [value for value in args[::-1] if isinstance(value, str)]
    return _resolve_process_group(names[0])
