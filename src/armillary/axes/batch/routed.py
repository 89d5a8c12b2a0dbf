"""Routed experts on ranks: local parts of their tokens, counted as those of one whole program.

The experts are a region of plain tensors between DTensors: every rank sorts and sends the tokens
that it holds. What depends on all tokens of a micro batch, the capacity of an expert and the load
of a router, is counted over all ranks that hold some.
"""

# Shapes: N tokens of a rank, H hidden, K experts chosen for a token, E experts, C = N K choices,
# R choices that are kept, sorted by expert
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from armillary.axes.batch.ranks import (
    BatchRanks,
    batch_ranks,
    counts_here,
    give_gradient,
    meetings,
    note_samples,
    num_batch_ranks,
    whole,
)
from armillary.axes.door import Transfer
from armillary.spec import ModelGraph, Routed
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import DeviceMesh

EXCHANGE = "_armillary_exchange"
COUNT_BYTES = 8  # counts are 64-bit integers


@runtime_checkable
class Routes(Protocol):
    """Routed experts as `armillary.Experts` are: every parameter holds one row an expert."""

    num_experts: int
    capacity_factor: float | None

    def sort(self, chosen_NK: "Tensor") -> "tuple[Tensor, Tensor]":
        """The kept choices by expert [R], and how many each expert has [E]."""
        ...

    def capacity(self, num_choices: int) -> int:
        """Rows that one expert takes of so many choices."""
        ...

    def compute(self, rows_RH: "Tensor", counts_E: "Tensor") -> "Tensor":
        """Each expert on its rows."""
        ...

    def scatter(self, rows_RH: "Tensor", choice_R: "Tensor", weight_NK: "Tensor") -> "Tensor":
        """The rows back in the tokens' places."""
        ...


@runtime_checkable
class Balances(Protocol):
    """What moves a bias by the load that it counted, as `BalanceBias` does."""

    load_E: "Tensor | None"

    def after_step(self, total: "Callable[[Tensor], Tensor] | None" = None) -> None:
        """Move the bias; `total` sums over the ranks that hold other samples."""
        ...


class Exchanges(Protocol):
    """Rows computed by the ranks that hold their experts."""

    degree: int

    def __call__(
        self, compute: "Callable[[Tensor, Tensor], Tensor]", rows_RH: "Tensor", counts_E: "Tensor"
    ) -> "Tensor":
        """`compute(rows, counts)` done where the experts are; rows in the order they came in."""
        ...


def routed_modules(part: "nn.Module") -> "list[tuple[str, Any]]":
    """The routed experts of `part`, by path."""
    return [(path, module) for path, module in part.named_modules() if isinstance(module, Routes)]


def exchange_by(module: Any, exchange: Exchanges) -> None:
    """Have the experts of `module` computed by `exchange`; its parameters are one rank's part."""
    module.__dict__[EXCHANGE] = exchange


def count_over_ranks(part: "nn.Module", mesh: "DeviceMesh") -> None:
    """Have the routed experts and the balance of `part` count over all ranks of `mesh`."""
    note_samples(1)  # whatever ran before in this process
    ranks = batch_ranks(mesh)
    for _, module in routed_modules(part):
        module.forward = InParts(module, ranks)
    for module in part.modules():
        if isinstance(module, Balances):
            _balance_over(module, ranks)


def count_traffic(axis: str, graph: ModelGraph, layouts: Layouts) -> list[Transfer]:
    """The counts of choices that experts with a capacity send, where `axis` is the first of those
    that split the batch.
    """
    return [
        Transfer(
            collective="all_gather_into_tensor",
            group=group,
            bytes=(COUNT_BYTES * routed.num_experts * num_batch_ranks(layouts)).astype(np.float64),
            per_step=rows.astype(np.float64),
            hidden_behind="",
            path=routed.path,
            carries="counts",
        )
        for routed in graph.routed
        if routed.has_capacity
        for group, rows in meetings(axis, layouts)
    ]


def choice_bytes(routed: Routed) -> int:
    """Bytes per sample of the choices that ranks with parts of the tokens gather, to find places in
    the queues of experts with a capacity; 0 for others.
    """
    return COUNT_BYTES * routed.num_chosen * routed.num_tokens * routed.has_capacity


def _balance_over(module: Any, ranks: BatchRanks | None) -> None:
    """Sum the load over `ranks` before the bias moves; samples that do not count are no load."""
    total = whole if ranks is None else ranks.total
    module.after_step = functools.partial(module.after_step, total)
    kept: list[Any] = [None]

    def keep(module: Any, args: Any) -> None:
        kept[0] = module.load_E

    def restore(module: Any, args: Any, output: Any) -> None:
        if not counts_here():
            module.load_E = kept[0]

    module.register_forward_pre_hook(keep)
    module.register_forward_hook(restore)


class InParts:
    """The forward pass of routed experts on the tokens of a rank, in place of their own."""

    def __init__(self, module: Any, ranks: BatchRanks | None) -> None:
        self.module, self.ranks = module, ranks
        self.kind = type(module)  # before FSDP gives it a class of its own
        self.exchange: Exchanges | None = module.__dict__.get(EXCHANGE)

    def __call__(self, x_NH: "Tensor", weight_NK: "Tensor", chosen_NK: "Tensor") -> "Tensor":
        from torch.distributed.tensor import DTensor

        tokens = Tokens.of(x_NH, weight_NK, chosen_NK)
        local = self._local(tokens)
        if self.module.capacity_factor is not None:
            local.sort = functools.partial(self._sort, local, tokens)
        mixed_NH = self.kind.forward(local, *(tokens.local(t) for t in tokens.tensors))
        if tokens.mesh is None:
            found: Tensor = mixed_NH
            return found
        return DTensor.from_local(
            mixed_NH,
            tokens.mesh,
            tokens.placements,
            run_check=False,
            shape=x_NH.shape,
            stride=(x_NH.shape[1], 1),
        )

    def _local(self, tokens: "Tokens") -> Any:
        """The module with this rank's part of the parameters as plain tensors.

        An expert's gradient adds up what all ranks of its axis sent, each of which weighted its
        loss for an average over all ranks that split the batch; the average that follows is over
        fewer, by the degree of the axis. Where ranks hold other tokens of a sample it is a part of
        a sum, left to be added up once a step.
        """
        factor = 1.0 if self.exchange is None else 1.0 / self.exchange.degree
        local = object.__new__(self.kind)
        local.__dict__ = {
            name: value for name, value in vars(self.module).items() if name != "forward"
        }
        local.__dict__["_parameters"] = {
            name: give_gradient(_local_part(value, tokens), factor)
            for name, value in self.module.named_parameters(recurse=False)
        }
        if self.exchange is not None:
            compute = functools.partial(self.kind.compute, local)
            local.compute = functools.partial(self.exchange, compute)
        return local

    def _sort(self, local: Any, tokens: "Tokens", chosen_NK: "Tensor") -> "tuple[Tensor, Tensor]":
        """`sort` with the places in an expert's queue counted over the tokens of all ranks.

        Where tensors carry no values, as in a rehearsal, all experts are chosen alike.
        """
        from torch._subclasses.fake_tensor import FakeTensor

        everyone_NK = whole(tokens.tensors[2])
        num_experts = self.module.num_experts
        expert_C = everyone_NK.flatten()
        order_C, counts_E = _by_expert(expert_C, num_experts)
        counts_E = counts_E * int(counts_here())
        ahead_E, total_E = counts_E * 0, counts_E
        if self.ranks is not None:
            ahead_E, total_E = self.ranks.before(counts_E)
        capacity = self.kind.capacity(local, int(total_E.sum()))
        place_C = expert_C.new_empty(len(expert_C))
        start_E = counts_E.cumsum(0) - counts_E - ahead_E
        place_C[order_C] = expert_C.new_tensor(range(len(order_C))) - start_E[expert_C[order_C]]
        is_kept_NK = (place_C < capacity).view_as(everyone_NK) & counts_here()
        is_kept_C = tokens.cut(is_kept_NK).flatten()
        order_C, _ = _by_expert(chosen_NK.flatten(), num_experts)
        if isinstance(is_kept_C, FakeTensor):
            choice_R = order_C[: self.kind.capacity(local, len(order_C)) * num_experts]
        else:
            choice_R = order_C[is_kept_C[order_C]]
        _, counts_E = _by_expert(chosen_NK.flatten()[choice_R], num_experts)
        return choice_R, counts_E


def _local_part(parameter: Any, tokens: "Tokens") -> "Tensor":
    """This rank's part of a parameter, whose gradient is partial where ranks hold other tokens."""
    from torch.distributed.tensor import DTensor, Partial

    if not isinstance(parameter, DTensor):
        return parameter
    names = parameter.device_mesh.mesh_dim_names or ()
    grads = [
        Partial() if name in tokens.cut_along else placement
        for name, placement in zip(names, parameter.placements, strict=True)
    ]
    local: Tensor = parameter.to_local(grad_placements=grads)
    return local


def _by_expert(expert_C: "Tensor", num_experts: int) -> "tuple[Tensor, Tensor]":
    """Places by expert, in the order of the tokens, and how many each expert has."""
    each_E = expert_C.new_tensor(range(num_experts))
    return expert_C.argsort(stable=True), (expert_C[:, None] == each_E).sum(0)


class Tokens:
    """The inputs of routed experts as they lie on the ranks, which hold others along `cut_along`.

    Along a dim of `mesh` a rank holds either other tokens or all of them; hidden parts and partial
    sums are made whole first.
    """

    def __init__(self, tensors: "list[Tensor]", mesh: Any, placements: Any) -> None:
        self.tensors, self.mesh, self.placements = tensors, mesh, placements
        names = () if mesh is None else mesh.mesh_dim_names or ()
        pairs = zip(names, placements, strict=True)
        self.cut_along = {name for name, placement in pairs if _cuts_tokens(placement)}

    @classmethod
    def of(cls, *tensors: "Tensor") -> "Tokens":
        """The tokens of the three inputs, of which any may be a DTensor."""
        from torch.distributed.tensor import DTensor, Replicate

        found = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
        if not found:
            return cls(list(tensors), None, ())
        mesh = found[0].device_mesh
        first = tensors[0] if isinstance(tensors[0], DTensor) else None
        placements = [
            p if _cuts_tokens(p) else Replicate()
            for p in (first.placements if first is not None else [Replicate()] * mesh.ndim)
        ]
        alike = [_as_dtensor(tensor, mesh).redistribute(mesh, placements) for tensor in tensors]
        return cls(alike, mesh, placements)

    def local(self, tensor: Any) -> "Tensor":
        """This rank's part of one of the inputs; what flows back is a part likewise."""
        part: Tensor = tensor
        if self.mesh is not None:
            part = tensor.to_local(grad_placements=self.placements)
        return part

    def cut(self, everyone: "Tensor") -> "Tensor":
        """This rank's part of what all ranks know whole."""
        if self.mesh is None:
            return everyone
        return self.local(_as_dtensor(everyone, self.mesh).redistribute(placements=self.placements))


def _cuts_tokens(placement: Any) -> bool:
    """Whether ranks hold other rows; torch's is_shard() denies it of a shard of a flattened dim."""
    return getattr(placement, "dim", None) == 0 and not placement.is_partial()


def _as_dtensor(tensor: Any, mesh: "DeviceMesh") -> Any:
    from torch.distributed.tensor import DTensor, Replicate

    if isinstance(tensor, DTensor):
        return tensor
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
