"""Between the cuts of weights: what enters, leaves and crosses a region that the ranks share.

The weights say it all. A linear map whose weight is cut by rows of the matrix (its output) begins a
region: its input is made whole, and the gradient of that input is summed. One whose weight is cut
by columns (its input) ends it: its partial sums are added. Between them every rank holds its own
units. Operators for which torch has no rule are run whole, the same on every rank.

Source: Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053, section 3, for the pairs of cuts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from armillary.axes.autocast import narrowed
from armillary.axes.regions import convolution, maps, multihead, pieces, vocabulary
from armillary.spec import SpecError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.overrides import TorchFunctionMode

ENTERED = "_armillary_entered"

WHOLE = {
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell"),
    *("rnn_relu_cell", "unfold", "alpha_dropout", "feature_alpha_dropout", "ctc_loss"),
}
"""Functions, by name, whose operators or their gradients torch cannot run on DTensors."""


@dataclass(frozen=True, slots=True)
class Regions:
    """The context in which a part computes along `axis`.

    `cuts_tokens`: between regions the activations are cut by tokens, not whole. `pieces` are the
    lengths of the last dim, and of the first dim made of it, that hold pieces of equal length one
    after the other, such as queries, keys and values.
    """

    axis: str
    cuts_tokens: bool = False
    pieces: frozenset[tuple[int, int]] = frozenset()

    def __call__(self) -> "TorchFunctionMode":
        """The mode in which functions of torch take what is cut along the axis."""
        from torch.distributed.tensor import DTensor
        from torch.overrides import TorchFunctionMode

        taken, cut = _handlers(), Cut(self)
        whole_errors = (NotImplementedError, SpecError)

        class ComputeInRegions(TorchFunctionMode):
            def __torch_function__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                kwargs = kwargs or {}
                name = getattr(function, "__name__", "")
                handler = taken.get(name)
                if handler is not None and _has_dtensor(args, kwargs, DTensor):
                    return handler(cut, function, *args, **kwargs)
                try:
                    return function(*args, **kwargs)
                except whole_errors as error:
                    if not _lacks_rule(error) or name.endswith("_"):
                        raise
                    return run_whole(function, *args, **kwargs)

        return ComputeInRegions()


class Cut:
    """Where the axis lies in a DTensor's mesh, and how activations enter and leave a region."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions

    def mesh_dim(self, tensor: Any) -> int | None:
        """The dim of the tensor's mesh that is the axis, None for a tensor not laid over it."""
        names = getattr(getattr(tensor, "device_mesh", None), "mesh_dim_names", None) or ()
        return names.index(self.regions.axis) if self.regions.axis in names else None

    def placement(self, tensor: Any) -> Any:
        """How `tensor` lies along the axis, None for a tensor not laid over it."""
        dim = self.mesh_dim(tensor)
        return None if dim is None else tensor.placements[dim]

    def is_cut(self, tensor: Any, tensor_dim: int) -> bool:
        """Whether `tensor` is cut along the axis by `tensor_dim` of its own."""
        placement = self.placement(tensor)
        return placement is not None and placement.is_shard(tensor_dim % tensor.ndim)

    def laid(self, tensor: Any, placement: Any) -> "DTensor":
        """`tensor` with `placement` along the axis; along other dims of the mesh it stays."""
        found: DTensor = tensor.redistribute(tensor.device_mesh, self.placed(tensor, placement))
        return found

    def on_mesh(self, tensor: Any, like: Any) -> Any:
        """A plain tensor, whole on every rank, as a DTensor."""
        from torch.distributed.tensor import DTensor, Replicate

        if tensor is None or isinstance(tensor, DTensor):
            return tensor
        mesh = like.device_mesh
        return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)

    def joined(self, local: Any, like: Any, placements: Any, shape: Any) -> "DTensor":
        """The part of this rank of a tensor of `shape`, on the mesh of `like`."""
        import torch
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            local.contiguous(),
            like.device_mesh,
            placements,
            run_check=False,
            shape=torch.Size(shape),
            stride=torch.empty(shape, device="meta").stride(),
        )

    def placed(self, tensor: Any, placement: Any) -> list[Any]:
        """The placements of `tensor`, with `placement` along the axis."""
        placements = list(tensor.placements)
        placements[self.mesh_dim(tensor) or 0] = placement
        return placements

    def local_weight(self, weight: Any, x: Any) -> Any:
        """This rank's part of a parameter that is used with `x`: where the ranks along another
        axis see other parts of `x`, its gradient is a partial sum.
        """
        from torch.distributed.tensor import Partial

        if weight is None:
            return None
        mine = self.mesh_dim(weight)
        grads = [
            Partial() if dim != mine and there.is_shard() else here
            for dim, (here, there) in enumerate(zip(weight.placements, x.placements, strict=True))
        ]
        return weight.to_local(grad_placements=grads)

    def entered(self, tensor: Any, *, is_narrowed: bool = True) -> Any:
        """`tensor` whole, as maps that begin a region take it; its gradient is summed once.

        Maps that take the same tensor share what is made of it here. What norms take is not
        `is_narrowed` as autocast does for products.
        """
        import torch
        from torch.distributed.tensor import Replicate

        if tensor.requires_grad is False and self.placement(tensor).is_replicate():
            return tensor
        taken = narrowed(tensor) if is_narrowed else tensor
        state = (torch.is_grad_enabled(), tensor._local_tensor._version, taken.dtype)
        known = tensor.__dict__.get(ENTERED)
        if known is None or known[0] != state:
            known = (state, self.laid(taken, Replicate()))
            tensor.__dict__[ENTERED] = known
        return known[1]

    def left(self, tensor: Any, token_dim: int) -> Any:
        """Partial sums added over the ranks: whole, or cut by tokens."""
        from torch.distributed.tensor import Replicate, Shard

        cuts = self.regions.cuts_tokens and tensor.ndim > 2
        return self.laid(tensor, Shard(token_dim % tensor.ndim) if cuts else Replicate())


def run_whole(function: Any, *args: Any, **kwargs: Any) -> Any:
    """`function` of the whole tensors, computed alike on every rank."""
    import torch
    from torch.distributed.tensor import DTensor, Replicate
    from torch.utils._pytree import tree_leaves, tree_map_only

    found = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, DTensor))
    mesh = found.device_mesh
    whole = [Replicate()] * mesh.ndim
    args, kwargs = tree_map_only(
        DTensor, lambda t: t.redistribute(mesh, whole).to_local(), (args, kwargs)
    )
    return tree_map_only(
        torch.Tensor,
        lambda t: DTensor.from_local(t, mesh, whole, run_check=False),
        function(*args, **kwargs),
    )


def gather_output(regions: Regions, part: Any, args: Any, output: Any) -> Any:
    """A forward hook: what the model puts out is cut along the axis by tokens at most."""
    from torch.distributed.tensor import DTensor, Replicate
    from torch.utils._pytree import tree_map_only

    cut = Cut(regions)

    def whole(tensor: Any) -> Any:
        placement = cut.placement(tensor)
        if placement is None or not placement.is_shard() or placement.dim < tensor.ndim - 1:
            return tensor
        return cut.laid(tensor, Replicate())

    return tree_map_only(DTensor, whole, output)


def _has_dtensor(args: Any, kwargs: Any, kind: Any) -> bool:
    from torch.utils._pytree import tree_leaves

    return any(isinstance(leaf, kind) for leaf in tree_leaves((args, kwargs)))


def _lacks_rule(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, SpecError) else error
    return isinstance(cause, NotImplementedError) and "sharding strategy" in str(cause)


def _handlers() -> dict[str, Callable[..., Any]]:
    """What is taken from torch, by the function's name: `handler(cut, function, ...)`."""
    taken: dict[str, Callable[..., Any]] = dict.fromkeys(
        WHOLE, lambda cut, function, *args, **kwargs: run_whole(function, *args, **kwargs)
    )
    for room in (maps, pieces, convolution, vocabulary, multihead):
        taken |= room.HANDLERS
    return taken
