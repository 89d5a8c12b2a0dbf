"""Parameters and activations as DTensors over the axes that cut tensors: one program, many ranks.

An axis that cuts tensors says where (`place`, `flow`), and `distribute` does it once for all such
axes. From then on every tensor of the model has its serial shape and meaning, whatever part of it
a rank holds, so positions, masks and means come out right by torch's own rules of DTensor.

Source: Xu et al. 2021, "GSPMD: General and Scalable Parallelization for ML Computation Graphs",
arXiv 2105.04663, for the idea; torch.distributed.tensor for the rules.
"""

import contextlib
from collections.abc import Iterator
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
    dim the inputs are cut that are as long there as the one counted in `cut_arguments`;
    `parameters` by axis and path how a parameter lies, whole where unsaid.
    `is_first` and `is_last` are false where the part takes or hands on activations of a pipeline.
    """

    flows: "dict[str, Placement]" = field(default_factory=dict)
    cut_dims: dict[str, int] = field(default_factory=dict)
    cut_arguments: dict[str, int] = field(default_factory=dict)
    parameters: "dict[str, dict[str, Placement]]" = field(default_factory=dict)
    is_first: bool = True
    is_last: bool = True


def spmd_of(part: "nn.Module") -> Spmd:
    """What was asked for of `part` so far, to be added to."""
    found: Spmd = part.__dict__.setdefault(SPMD, Spmd())
    return found


def flow(
    part: "nn.Module",
    axis: str,
    placement: "Placement",
    cut_dim: int | None = None,
    cut_argument: int = 0,
) -> None:
    """Have the activations between blocks lie as `placement` along `axis`.

    Of the tensors that the model takes, counted from 0, number `cut_argument` is cut along its dim
    `cut_dim`, and so are those that are as long there; others are whole on every rank, and all are
    where `cut_dim` is None.
    """
    spmd_of(part).flows[axis] = placement
    if cut_dim is not None:
        spmd_of(part).cut_dims[axis] = cut_dim
        spmd_of(part).cut_arguments[axis] = cut_argument


def place(part: "nn.Module", axis: str, path: str, placement: "Placement") -> None:
    """Have the parameter at `path` lie as `placement` along `axis`."""
    spmd_of(part).parameters.setdefault(axis, {})[path] = placement


def distribute(part: "nn.Module", mesh: "DeviceMesh") -> None:
    """Make the parameters of `part` DTensors as asked for, and its inputs and outputs with them."""
    asked = part.__dict__.get(SPMD)
    if asked is None:
        return
    _distribute_parameters(part, mesh, asked)
    if not asked.flows:
        return
    submesh = mesh[tuple(name for name in mesh.mesh_dim_names or () if name in asked.flows)]
    edge = Edge(submesh, asked)
    part.register_forward_pre_hook(edge.enter, with_kwargs=True)
    if not asked.is_last:
        part.register_forward_hook(edge.leave)

    from armillary.axes.compose import compute_in

    compute_in(part, take_plain_as_whole)


@contextlib.contextmanager
def take_plain_as_whole() -> Iterator[None]:
    """A context in which a plain tensor beside a DTensor is taken to be whole on every rank.

    torch's own, `implicit_replication`, cannot be entered again from within.
    """
    from torch.distributed.tensor import DTensor

    dispatcher: Any = DTensor._op_dispatcher
    before = dispatcher._allow_implicit_replication
    dispatcher._allow_implicit_replication = True
    try:
        yield
    finally:
        dispatcher._allow_implicit_replication = before


def _distribute_parameters(part: "nn.Module", mesh: "DeviceMesh", asked: Spmd) -> None:
    """Every parameter over the axes in which activations flow, and those that cut it besides."""
    import torch
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    made: dict[Any, Any] = {}
    for path, parameter in list(part.named_parameters(remove_duplicate=False)):
        names = tuple(
            name
            for name in mesh.mesh_dim_names or ()
            if name in asked.flows or path in asked.parameters.get(name, {})
        )
        if not names or isinstance(parameter, DTensor):
            continue
        if parameter not in made:
            submesh = mesh[names]
            placements = [asked.parameters.get(name, {}).get(path, Replicate()) for name in names]
            local = distribute_tensor(parameter.data, submesh, placements, src_data_rank=None)
            made[parameter] = torch.nn.Parameter(local, requires_grad=parameter.requires_grad)
        owner, _, name = path.rpartition(".")
        # not register_parameter, which a recurrent module does not hear of
        setattr(part.get_submodule(owner), name, made[parameter])


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
            args = (self._received(hidden), *map(self._whole, rest))
            return args, tree_map_only(torch.Tensor, self._whole, kwargs)
        lengths = self._lengths(args, kwargs)

        def cut(tensor: Any) -> Any:
            return self._placed(tensor, self._cuts(tensor, lengths))

        return tree_map_only(torch.Tensor, cut, args), tree_map_only(torch.Tensor, cut, kwargs)

    def _lengths(self, args: Any, kwargs: Any) -> list[int]:
        """How long the inputs are that are cut, by dim of the mesh; -1 where none is."""
        import torch
        from torch.utils._pytree import tree_leaves

        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        lengths = []
        for name, cut in zip(self.submesh.mesh_dim_names or (), self.inputs, strict=True):
            number = self.asked.cut_arguments.get(name, 0)
            is_there = number < len(tensors) and cut.is_shard()
            dim = getattr(cut, "dim", 0)
            is_long = is_there and tensors[number].ndim > dim
            lengths.append(tensors[number].shape[dim] if is_long else -1)
        return lengths

    def _cuts(self, tensor: "Tensor", lengths: list[int]) -> list[Any]:
        """How an input is laid; a mask of all positions by all is not cut."""
        from torch.distributed.tensor import Replicate

        def is_cut(cut: Any, length: int) -> bool:
            fits = cut.is_shard() and tensor.ndim > cut.dim and tensor.shape[cut.dim] == length
            return fits and tuple(tensor.shape) != (length, length)

        return [
            cut if is_cut(cut, length) else Replicate()
            for cut, length in zip(self.inputs, lengths, strict=True)
        ]

    def leave(self, part: "nn.Module", args: Any, output: Any) -> Any:
        """A forward hook: the local part of the activations, as the next part will take them.

        What crosses besides the first tensor is whole on every rank.
        """
        hidden, *rest = output
        whole = [self._whole(tensor).full_tensor() for tensor in rest]
        return (self._sent(hidden), *whole)

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

    def _placed(self, tensor: Any, wanted: Any) -> Any:
        """A plain tensor that every rank holds whole, as a DTensor that lies as wanted."""
        from torch.distributed.tensor import DTensor, Replicate

        if isinstance(tensor, DTensor):
            return tensor
        whole = [Replicate()] * self.submesh.ndim
        found = DTensor.from_local(tensor, self.submesh, whole, run_check=False)
        return found.redistribute(self.submesh, wanted) if wanted else found
