"""What the stages of a pipeline tell each other of shapes, from one pass of the whole model.

On ranks that are there, each stage tells the next (`line.Line.pass_through`). A rank that is alone
sees the whole model once instead, without memory, before it is cut.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from armillary.axes.spmd import SPMD
from armillary.axes.stages.absent import Meta, tensor_leaves
from armillary.axes.stages.line import Line, Shapes
from armillary.axes.stages.stage import Outputs, Part, is_unit

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import DeviceMesh


@dataclass(slots=True)
class Whole:
    """What blocks and units of a model handed on in a pass, and what blocks took."""

    outputs: Outputs = field(default_factory=dict)
    taken: dict[str, list[Meta]] = field(default_factory=dict)


@contextlib.contextmanager
def seeing(
    module: "nn.Module", chain: Sequence[str], alike: Mapping[str, Sequence[str]]
) -> Iterator[Whole]:
    """A context in which a pass of `module` is seen; the blocks `alike[path]`, which are left out
    of it, are taken to do as the block at `path`.
    """
    import torch
    from torch.utils._pytree import tree_map_only

    seen = Whole()
    blocks = set(chain)

    def meta(tensor: Any) -> Meta:
        return Meta(tuple(tensor.shape), tensor.dtype)

    def look(path: str, args: Any, kwargs: Any, output: Any) -> None:
        handed = tree_map_only(torch.Tensor, meta, output)
        for other in (path, *alike.get(path, ())):
            seen.outputs.setdefault(other, []).append(handed)
            seen.taken[other] = [meta(t) for t in tensor_leaves((args, kwargs))]

    def hook(path: str) -> Any:
        return lambda part, args, kwargs, output: look(path, args, kwargs, output)

    hooks = [
        part.register_forward_hook(hook(path), with_kwargs=True)
        for path, part in module.named_modules()
        if path in blocks or is_unit(module, path, tuple(chain))
    ]
    try:
        yield seen
    finally:
        for one in hooks:
            one.remove()


class Foresight:
    """What inputs of any shape make of the stages of `line`, as `seen` says of one shape."""

    def __init__(self, line: Line, seen: Whole, mesh: "DeviceMesh") -> None:
        self.line, self.seen = line, seen
        self.flows = {part.index: _flows(part, mesh) for part in line.parts}

    def tell(self, key: Any) -> None:
        """Have the line know what inputs of the shapes `key` make."""
        self.line.known[key] = {
            part.index: Shapes(
                taken=self._crossing(part, part.entry, part.taken),
                handed=self._crossing(part, part.stop, part.handed),
                outputs=self.seen.outputs,
            )
            for part in self.line.parts
        }

    def _crossing(self, part: Part, block: str, numbers: Sequence[int]) -> tuple[Meta, ...]:
        """The tensors that cross ahead of `block`, as one rank holds them: the first as activations
        flow, others whole (`spmd.Edge`).
        """
        found = [self.seen.taken[block][i] for i in numbers] if block else []
        flows = self.flows[part.index]
        if found and flows is not None:
            from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

            shape, _ = compute_local_shape_and_global_offset(found[0].shape, *flows)
            found[0] = Meta(tuple(shape), found[0].dtype)
        return tuple(found)


def _flows(part: Part, mesh: "DeviceMesh") -> Any:
    """The mesh over which activations flow between stages, and how they lie there, if they do."""
    asked = part.module.__dict__.get(SPMD)
    if asked is None or not asked.flows:
        return None
    names = tuple(name for name in mesh.mesh_dim_names or () if name in asked.flows)
    return mesh[names], [asked.flows[name] for name in names]
