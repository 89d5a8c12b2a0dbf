"""A model built on the ranks of a layout: where parameters are shared out, without the whole."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from armillary.axes import discover
from armillary.axes.door import parts
from armillary.models import Call, read
from armillary.models.deferred import Deferred, NotDeferrable, defer
from armillary.spec import Layout, ModelGraph
from armillary.step.parallel import apply_layout, make_parallel, sees_calls
from armillary.step.world import World

Build = Callable[[], nn.Module]
Example = Callable[[torch.device], tuple[Call, int]]


def build_on_ranks(
    build: Build, example: Example, world: World, layout: Layout, *, dtype: torch.dtype, seed: int
) -> tuple[nn.Module, ModelGraph]:
    """What `build()` makes with `seed`, parallel as `layout` says, and its graph.

    The values are those of the serial model, whatever the layout. Where an axis shares parameters
    out, the model is built without memory and filled tensor by tensor, so that a rank never holds
    the whole; a model whose code looks at its values is built whole on every rank instead.
    `example(device)` gives a forward pass on some samples there, and their number.

    Raises: `SpecError` if an axis refuses the model.
    """
    if world.mesh is not None and _shares_parameters(layout):
        try:
            return _build_in_parts(build, example, world, layout, dtype=dtype, seed=seed)
        except NotDeferrable:
            pass
    seed_build(seed)
    module = build().to(device=world.device, dtype=dtype).train()
    seen = example(world.device) if sees_calls(layout) else (None, 1)
    return apply_layout(module, world, layout, *seen)


def read_before_ranks(
    build: Build, example: Example, layout: Layout, *, dtype: torch.dtype
) -> ModelGraph:
    """The graph of what `build()` makes, as far as the axes of `layout` must know it.

    Where an axis shares parameters out, the model is built without memory, as on the ranks.
    """
    if _shares_parameters(layout):
        try:
            module = defer(build).module.to(dtype=dtype)
            return _read_without_memory(module, example, layout)
        except NotDeferrable:
            pass
    seen = example(torch.device("cpu")) if sees_calls(layout) else (None, 1)
    return read(build().to(dtype=dtype), *seen)


def seed_build(seed: int) -> None:
    """Seed what a model's code may draw from while it is built."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)


def _shares_parameters(layout: Layout) -> bool:
    """Whether an axis of `layout` leaves a rank with fewer parameters than the whole."""
    axes = discover()
    return any(axes[n].shares_parameters for n, degree in layout.degrees.items() if degree > 1)


def _build_in_parts(
    build: Build, example: Example, world: World, layout: Layout, *, dtype: torch.dtype, seed: int
) -> tuple[nn.Module, ModelGraph]:
    seed_build(seed)
    deferred = defer(build)
    module = deferred.module.to(dtype=dtype).train()
    graph = _read_without_memory(module, example, layout)
    module = make_parallel(module, graph, world, layout)
    give_memory(module, world.device)
    fill(module, deferred, seed)
    return module, graph


def give_memory(module: nn.Module, device: torch.device) -> None:
    """Give the tensors of `module` memory, without values.

    torch makes new ones, so tied parameters are tied again, and the stages of a pipeline, which
    hold the same tensors by the same names, are given the new.
    """
    owners = {id(p): path for path, p in reversed([*module.named_parameters()])}
    names = module.named_parameters(remove_duplicate=False)
    same = {path: owners[id(parameter)] for path, parameter in names}
    module.to_empty(device=device)
    for part in [module, *parts(module)]:
        for path, _ in [*part.named_parameters(remove_duplicate=False)]:
            _put(part, path, module.get_parameter(same[path]))
        for path, _ in [*part.named_buffers(remove_duplicate=False)]:
            _put(part, path, module.get_buffer(path))


def _put(module: nn.Module, path: str, tensor: torch.Tensor) -> None:
    owner, _, name = path.rpartition(".")
    if getattr(module.get_submodule(owner), name) is not tensor:
        setattr(module.get_submodule(owner), name, tensor)


def _read_without_memory(module: nn.Module, example: Example, layout: Layout) -> ModelGraph:
    """The graph of `module`, from a forward pass that computes shapes only.

    Raises: `NotDeferrable` if the loss looks at values.
    """
    if not sees_calls(layout):
        return read(module)
    call, num_samples = example(torch.device("meta"))
    try:
        with torch.device("meta"):
            return read(module, call, num_samples)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise NotDeferrable(str(error)) from error


@torch.no_grad()
def fill(module: nn.Module, deferred: Deferred, seed: int) -> None:
    """Give every tensor that this rank holds its serial value, or its part of it."""
    held: Mapping[str, Any] = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    for name, value in deferred.values(seed):
        if name in held:
            give(held[name], value)


def give(tensor: Any, value: torch.Tensor) -> None:
    """Copy `value` into `tensor`, of which this rank may hold a part only."""
    if not hasattr(tensor, "to_local"):
        tensor.copy_(value)
        return
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    for dim, (size, start) in enumerate(zip(shape, offset, strict=True)):
        value = value.narrow(dim, start if size else 0, size)
    tensor.to_local().copy_(value)
