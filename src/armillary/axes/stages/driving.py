"""A model turned into one that a pipeline drives, in place."""

from typing import TYPE_CHECKING, Any

from armillary.axes.spmd import spmd_of
from armillary.axes.stages.absent import ABSENT
from armillary.axes.stages.balance import Stages
from armillary.axes.stages.driven import Driven
from armillary.axes.stages.stage import Part
from armillary.spec import ModelGraph

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed import DeviceMesh

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def drive(
    module: "nn.Module",
    graph: ModelGraph,
    stages: Stages,
    schedule: str,
    shared: dict[str, list[int]],
    mesh: "DeviceMesh",
    recomputes: bool,
) -> "nn.Module":
    """`module` with the tensors of this rank's stages, under their own names, and a driven step.

    `recomputes` says that blocks compute their activations twice. `shared` are the coordinates that
    hold a parameter, by its path, where these are several.
    """
    rank = mesh.get_local_rank()
    device = device_of(mesh)
    parts = [Part(module, graph, stages, index, device) for index in stages.of_rank(rank)]
    for part in parts:
        asked = spmd_of(part.module)
        asked.is_first, asked.is_last = part.index == 0, part.is_last
    _keep(module, [part.module for part in parts])
    for hooks in HOOKS:
        module.__dict__[hooks].clear()  # the stages have them
    driven = Driven(module, parts, stages, schedule, shared, mesh.get_group(), device, recomputes)
    made: Any = module
    made.stages = [part.module for part in parts]
    made.forward_backward = driven.forward_backward
    made.forward = driven.forward
    return module


def device_of(mesh: "DeviceMesh") -> "torch.device":
    """The device of this rank, also where the parameters have no memory yet."""
    import torch

    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.accelerator.current_device_index())


def _keep(module: "nn.Module", parts: "list[nn.Module]") -> None:
    """Leave in `module` what one of `parts` holds; the rest of its tensors go."""
    held = {id(p) for part in parts for p in part.parameters()}
    for name, parameter in list(module._parameters.items()):
        if parameter is not None and id(parameter) not in held:
            del module._parameters[name]
            module.__dict__[name] = getattr(parts[0], name)
    for name, child in list(module.named_children()):
        children = [part.get_submodule(name) for part in parts]
        if any(other is child for other in children):
            continue
        copies = [other for other in children if ABSENT not in other.__dict__]
        if copies:
            _keep(child, copies)
        else:
            module._modules[name] = children[0]
