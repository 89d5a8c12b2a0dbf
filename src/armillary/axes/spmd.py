"""Parameters and activations as DTensors over the axes that cut tensors: one program, many ranks.

An axis that cuts tensors says where (`place`, `flow`), and `distribute` does it once for all such
axes. From then on every tensor of the model has its serial shape and meaning, whatever part of it
a rank holds, so positions, masks and means come out right by torch's own rules of DTensor.

Source: Xu et al. 2021, "GSPMD: General and Scalable Parallelization for ML Computation Graphs",
arXiv 2105.04663, for the idea; torch.distributed.tensor for the rules.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import DeviceMesh
    from torch.distributed.tensor import Placement

SPMD = "_armillary_spmd"


@dataclass(slots=True)
class Spmd:
    """What the axes that cut tensors asked for of one part of a model.

    `flows` says by axis how the activations between blocks lie; `cut_dims` by axis along which
    dim the inputs are cut; `parameters` by axis and path how a parameter lies, whole where unsaid.
    `is_first` and `is_last` are false where the part takes or hands on activations of a pipeline.
    """

    flows: "dict[str, Placement]" = field(default_factory=dict)
    cut_dims: dict[str, int] = field(default_factory=dict)
    parameters: "dict[str, dict[str, Placement]]" = field(default_factory=dict)
    is_first: bool = True
    is_last: bool = True


def spmd_of(part: "nn.Module") -> Spmd:
    """What was asked for of `part` so far, to be added to."""
    found: Spmd = part.__dict__.setdefault(SPMD, Spmd())
    return found


def flow(part: "nn.Module", axis: str, placement: "Placement", cut_dim: int | None = None) -> None:
    """Have the activations between blocks lie as `placement` along `axis`.

    The inputs of the model are cut along `cut_dim` of theirs, or whole on every rank.
    """
    spmd_of(part).flows[axis] = placement
    if cut_dim is not None:
        spmd_of(part).cut_dims[axis] = cut_dim


def place(part: "nn.Module", axis: str, path: str, placement: "Placement") -> None:
    """Have the parameter at `path` lie as `placement` along `axis`."""
    spmd_of(part).parameters.setdefault(axis, {})[path] = placement


def distribute(part: "nn.Module", mesh: "DeviceMesh") -> None:
    """Make the parameters of `part` DTensors as asked for, and its inputs and outputs with them."""
    asked = part.__dict__.get(SPMD)
    if asked is None or not asked.flows:
        return
    names = tuple(name for name in mesh.mesh_dim_names or () if name in asked.flows)
    submesh = mesh[names]
    _distribute_parameters(part, submesh, asked)
    edge = Edge(submesh, asked)
    part.register_forward_pre_hook(edge.enter, with_kwargs=True)
    if not asked.is_last:
        part.register_forward_hook(edge.leave)

    from torch.distributed.tensor.experimental import implicit_replication

    from armillary.axes.compose import compute_in

    compute_in(part, implicit_replication)


def _distribute_parameters(part: "nn.Module", submesh: "DeviceMesh", asked: Spmd) -> None:
    import torch
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    made: dict[Any, Any] = {}
    for path, parameter in list(part.named_parameters(remove_duplicate=False)):
        if isinstance(parameter, DTensor):
            continue
        if parameter not in made:
            placements = [
                asked.parameters.get(name, {}).get(path, Replicate())
                for name in submesh.mesh_dim_names or ()
            ]
            local = distribute_tensor(parameter.data, submesh, placements, src_data_rank=None)
            made[parameter] = torch.nn.Parameter(local, requires_grad=parameter.requires_grad)
        owner, _, name = path.rpartition(".")
        part.get_submodule(owner).register_parameter(name, made[parameter])


class Edge:
    """The edge of a part: plain tensors come in, DTensors flow, plain ones go to another part."""

    def __init__(self, submesh: "DeviceMesh", asked: Spmd) -> None:
        from torch.distributed.tensor import Replicate, Shard

        names = submesh.mesh_dim_names or ()
        self.submesh, self.asked = submesh, asked
        self.flows = [asked.flows[name] for name in names]
        self.inputs = [
            Shard(asked.cut_dims[name]) if name in asked.cut_dims else Replicate() for name in names
        ]

    def enter(self, part: "nn.Module", args: Any, kwargs: Any) -> Any:
        """A forward pre-hook: activations of another part lie as they flow, inputs of the model
        are cut on the rank, without a message.
        """
        import torch
        from torch.utils._pytree import tree_map_only

        if not self.asked.is_first:
            hidden, *rest = args
            args = (self._received(hidden), *rest)
            return args, tree_map_only(torch.Tensor, self._whole, kwargs)
        return (
            tree_map_only(torch.Tensor, self._cut, args),
            tree_map_only(torch.Tensor, self._cut, kwargs),
        )

    def leave(self, part: "nn.Module", args: Any, output: Any) -> Any:
        """A forward hook: the local part of the activations, as the next part will take them."""
        import torch
        from torch.utils._pytree import tree_map_only

        return tree_map_only(torch.Tensor, self._sent, output)

    def _received(self, local: "Tensor") -> "Tensor":
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(local, self.submesh, self.flows, run_check=False)

    def _sent(self, tensor: Any) -> Any:
        from torch.distributed.tensor import DTensor

        if not isinstance(tensor, DTensor):
            tensor = self._whole(tensor)
        return tensor.redistribute(self.submesh, self.flows).to_local()

    def _whole(self, tensor: Any) -> Any:
        return self._placed(tensor, [])

    def _cut(self, tensor: Any) -> Any:
        return self._placed(tensor, self.inputs)

    def _placed(self, tensor: Any, wanted: Any) -> Any:
        """A plain tensor that every rank holds whole, as a DTensor; too few dims are not cut."""
        from torch.distributed.tensor import DTensor, Replicate

        if isinstance(tensor, DTensor):
            return tensor
        whole = [Replicate()] * self.submesh.ndim
        found = DTensor.from_local(tensor, self.submesh, whole, run_check=False)
        cuts = [p if p.is_shard() and p.dim < tensor.ndim else Replicate() for p in wanted]
        return found.redistribute(self.submesh, cuts) if any(p.is_shard() for p in cuts) else found
