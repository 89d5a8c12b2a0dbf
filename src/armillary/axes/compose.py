"""All axes of a layout applied together, and the context in which what they made computes."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from armillary.axes import discover
from armillary.axes.batch.norm import norm_over_ranks
from armillary.axes.batch.routed import count_over_ranks
from armillary.axes.door import parts
from armillary.axes.matching import match_first
from armillary.axes.reduction import reduce_gradients
from armillary.axes.spmd import distribute
from armillary.spec import Layout, ModelGraph

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import DeviceMesh

CONTEXTS = "_armillary_contexts"
PART = "_armillary_part"
OnceCut = Callable[["nn.Module", ModelGraph], ModelGraph]


def compose(
    module: "nn.Module",
    mesh: "DeviceMesh",
    layout: Layout,
    graph: ModelGraph,
    once_cut: OnceCut | None = None,
) -> "nn.Module":
    """`module` made parallel along every axis of `mesh`, in place where torch allows it.

    First the axes that cut the module into parts, then those that rewrite or place what is in a
    part; then its parameters are distributed, once for all axes, and last its gradients are
    arranged to be averaged. `once_cut` may change the parts in between, and gives the graph of what
    is left.
    """
    axes = discover()
    names = mesh.mesh_dim_names or ()
    if len(names) > 1:
        match_first()
    for name in names:
        if axes[name].splits_module:
            module = axes[name].apply(module, mesh, layout, graph)
    if once_cut is not None:
        graph = once_cut(module, graph)
    for name in names:
        if not axes[name].splits_module:
            module = axes[name].apply(module, mesh, layout, graph)
    blocks = {block.path for block in graph.blocks}
    for part in parts(module):
        distribute(part, mesh)
        count_over_ranks(part, mesh)
        norm_over_ranks(part, mesh)
        reduce_gradients(part, mesh, layout, graph)
        for path, inner in part.named_modules():
            if path in blocks:
                inner.__dict__[PART] = part
    _link_again(module)
    return module


def _link_again(module: "nn.Module") -> None:
    """Give `module` the parameters that its parts hold now, where a part is not `module` itself."""
    for part in parts(module):
        if part is module:
            continue
        for path, parameter in part.named_parameters(remove_duplicate=False):
            owner, _, name = path.rpartition(".")
            module.get_submodule(owner).register_parameter(name, parameter)


def compute_in(module: "nn.Module", context: Callable[[], AbstractContextManager[Any]]) -> None:
    """Have `computing(module)` enter `context`; an equal one is entered once."""
    contexts = module.__dict__.setdefault(CONTEXTS, [])
    if context not in contexts:
        contexts.append(context)


@contextlib.contextmanager
def computing(module: "nn.Module") -> Iterator[None]:
    """The context in which `module` runs forward, its loss is taken, and it runs backward."""
    wanted = [c for part in parts(module) for c in part.__dict__.get(CONTEXTS, ())]
    with contextlib.ExitStack() as stack:
        for context in dict.fromkeys(wanted):
            stack.enter_context(context())
        yield


@contextlib.contextmanager
def computing_again(block: "nn.Module") -> Iterator[None]:
    """The context in which a block of a part runs forward once more in the backward pass.

    The backward pass is entered as a function of torch, which leaves the part's modes, and on an
    accelerator runs in a thread of its own.
    """
    part = block.__dict__.get(PART)
    with computing(part) if part is not None else contextlib.nullcontext():
        yield
