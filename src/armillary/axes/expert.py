"""The expert axis: each rank holds some of the routed experts, and tokens travel to theirs."""

# Shapes: R rows of tokens that leave a rank, A rows that arrive, H hidden, E experts of all ranks,
# D ranks along the axis, L = E / D experts of a rank
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes.autocast import narrowed
from armillary.axes.batch.counted import counted
from armillary.axes.batch.routed import COUNT_BYTES, exchange_by, routed_modules
from armillary.axes.batch.times import num_calls, num_reductions, rank_samples, sent_again
from armillary.axes.batch.units import dense_units
from armillary.axes.door import (
    Part,
    Refusal,
    Shares,
    Transfer,
    part_of,
    parts,
    refuse,
    refuse_batch_norm,
)
from armillary.axes.reduction import own_along
from armillary.axes.spmd import place
from armillary.spec import Layout, ModelGraph, Op, Routed
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import DeviceMesh, ProcessGroup


class Expert:
    """Experts cut over ranks that also split the batch; no token is dropped on the way.

    Every rank sends each of its tokens' rows to the ranks that hold the chosen experts and gets
    the results back, by all-to-all. The other parameters are held by all and averaged as along
    the data axis.

    Source: Lepikhin et al. 2020, "GShard", arXiv 2006.16668, section 3.2.
    """

    name = "expert"
    order = 2
    borrows: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = {}
    splits_batch = True
    splits_module = False
    shares_parameters = True
    sees_calls = False

    def admits(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Refusal]:
        degrees = layouts.degree(self.name)
        everywhere = np.ones(layouts.num_layouts, dtype=bool)
        if not graph.routed:
            return [
                refuse(
                    self.name,
                    layouts,
                    everywhere,
                    f"degree {{degree}} for {graph.name}, which has no routed experts",
                    "only the experts of armillary.Experts are held by one rank each "
                    "(axes/expert.py)",
                    f"use data={{degree}} in place of {self.name}={{degree}}, or write the experts "
                    "as armillary.Experts",
                )
            ]
        refusals = refuse_batch_norm(self.name, graph, layouts)
        for routed in graph.routed:
            where = routed.path or graph.name
            refusals.append(
                refuse(
                    self.name,
                    layouts,
                    routed.num_experts % degrees != 0,
                    f"degree {{degree}} does not divide the {routed.num_experts} experts of "
                    f"{where}",
                    "every rank holds equally many whole experts (axes/expert.py)",
                    f"use one of {', '.join(map(str, divisors(routed.num_experts)))}",
                )
            )
            refusals.append(
                refuse(
                    self.name,
                    layouts,
                    everywhere & bool(routed.unfit),
                    f"degree {{degree}} for {where}, which holds {routed.unfit}",
                    "every parameter of the experts is their own and has a row for each of them "
                    "(axes/expert.py)",
                    "stack the experts' weights along dim 0, and keep what they share elsewhere",
                )
            )
        return refusals

    def divides(self, graph: ModelGraph, layouts: Layouts) -> Shares:
        """Experts are a larger part of what the tensor axis leaves, which cuts the rest alone."""
        from armillary.axes import discover

        degrees = layouts.degree(self.name)
        share, routed = np.ones(layouts.num_layouts), expert_bytes(graph)
        if routed:
            left = discover()["tensor"].divides(graph, layouts).parameters
            share -= routed / graph.parameter_bytes / left * (1.0 - 1.0 / degrees)
        return Shares(
            parameters=share, gradients=share, optimizer_state=share, samples=1.0 / degrees
        )

    def computes(self, op: Op, layouts: Layouts) -> Part | None:
        """Of its own experts all the tokens that the ranks along the axis send."""
        if not op.experts:
            return None
        degrees = layouts.degree(self.name).astype(np.float64)
        return part_of(layouts, rows=degrees, batch=1.0 / degrees, parameters=1.0 / degrees)

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        """Rows of tokens, and the gradients of what all ranks hold.

        The gradients of experts are averaged along `data` and `sharded`, which tell of them.
        """
        rows = [t for routed in graph.routed for t in self._of_layer(routed, graph, layouts)]
        dense = [
            Transfer(
                collective="all_reduce",
                group=group,
                bytes=unit.bytes / layouts.degree("sharded"),
                per_step=is_sent * unit.per_rank * num_reductions(layouts),
                hidden_behind="backward",
                path=unit.path,
                carries="gradients",
                rounds=num_reductions(layouts),
            )
            for unit in dense_units(graph, layouts)
            for group, is_sent in self._replicas(layouts)
        ]
        return rows + dense + counted(self.name, graph, layouts)

    def _replicas(self, layouts: Layouts) -> list[tuple[tuple[str, ...], NDArray[np.bool_]]]:
        """The ranks that hold the same parameters outside the experts, and in which rows."""
        is_cut = layouts.degree(self.name) > 1
        has_data = layouts.degree("data") > 1
        return [((self.name,), is_cut & ~has_data), (("data", self.name), is_cut & has_data)]

    def _of_layer(self, routed: Routed, graph: ModelGraph, layouts: Layouts) -> list[Transfer]:
        """Rows to the experts and back, forward and backward, and before them their counts."""
        degrees = layouts.degree(self.name)
        rows = routed.token_bytes * routed.num_chosen * rank_samples(layouts) * degrees
        counts = (COUNT_BYTES * routed.num_experts * degrees).astype(np.float64)

        def sent(size: NDArray[np.float64], times: int, carries: str) -> Transfer:
            return Transfer(
                collective="all_to_all_single",
                group=(self.name,),
                bytes=size,
                per_step=(degrees > 1) * times * num_calls(layouts),
                hidden_behind="",
                path=routed.path,
                carries=carries,
            )

        cuts_norms = layouts.option("tensor.norms", "whole") == "cut"
        shares = np.where(cuts_norms, layouts.degree("tensor"), 1) * layouts.degree("sequence")
        size = rows / shares
        found = sent_again(sent(counts, 1, "counts"), graph, layouts)
        found += sent_again(sent(size, 2, "activations"), graph, layouts)
        return [*found, sent(size, 2, "activations")]

    def apply(
        self, module: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
    ) -> "nn.Module":
        """`module` with its experts cut over the axis; `axes/batch/routed.py` sends the tokens."""
        from torch.distributed.tensor import Shard

        own = mesh[self.name]
        for part in parts(module):
            for path, experts in routed_modules(part):
                for name, _ in experts.named_parameters(recurse=False):
                    place(part, self.name, f"{path}.{name}" if path else name, Shard(0))
                own_along(experts, self.name)
                exchange_by(experts, Exchange(own.get_group(), own.size()))
        return module


def expert_bytes(graph: ModelGraph) -> int:
    """Bytes of all routed experts of a model."""
    return sum(routed.parameter_bytes * graph.times(routed.path) for routed in graph.routed)


def divisors(number: int) -> list[int]:
    """The divisors of `number`, in order."""
    return [d for d in range(1, number + 1) if number % d == 0]


class Exchange:
    """Rows sent to the ranks of their experts, computed there, and sent back.

    Where tensors carry no values, as in a rehearsal, rows leave for all ranks alike, and `load`
    rows arrive for each that leaves.
    """

    def __init__(self, group: "ProcessGroup", degree: int) -> None:
        self.group, self.degree, self.load = group, degree, 1.0

    def __call__(
        self, compute: "Callable[[Tensor, Tensor], Tensor]", rows_RH: "Tensor", counts_E: "Tensor"
    ) -> "Tensor":
        """Rows [R, H] sorted by expert in, their results in the same places out."""
        import torch
        import torch.distributed as dist

        leaving_DL = counts_E.view(self.degree, -1).contiguous()
        arriving_DL = torch.empty_like(leaving_DL)
        dist.all_to_all_single(arriving_DL, leaving_DL, group=self.group)
        leaving = _sizes(leaving_DL, len(rows_RH))
        arriving = _sizes(arriving_DL, round(self.load * len(rows_RH)))
        rows_AH = _send(narrowed(rows_RH), leaving, arriving, self.group)
        order_A = _by_expert(arriving_DL, len(rows_AH))
        found_AH = compute(rows_AH[order_A], arriving_DL.sum(0))
        back_AH = torch.empty_like(found_AH).index_copy(0, order_A, found_AH)
        return _send(back_AH, arriving, leaving, self.group)


def _sizes(counts_DL: "Tensor", num_rows: int) -> list[int]:
    """Rows for or from each rank; even shares of `num_rows` where the tensor carries no values."""
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(counts_DL, FakeTensor):
        degree = len(counts_DL)
        return [num_rows // degree + (i < num_rows % degree) for i in range(degree)]
    return [int(size) for size in counts_DL.sum(1).tolist()]


def _by_expert(counts_DL: "Tensor", num_rows: int) -> "Tensor":
    """Places [A] of rows that came by rank and then by expert, in the order of their experts."""
    import torch

    experts_DL = torch.arange(counts_DL.shape[1], device=counts_DL.device).expand_as(counts_DL)
    expert_A = experts_DL.flatten().repeat_interleave(counts_DL.flatten(), output_size=num_rows)
    return expert_A.argsort(stable=True)


def _send(rows: "Tensor", leaving: list[int], arriving: list[int], group: Any) -> "Tensor":
    """Rows by all-to-all, `leaving` of them to each rank; gradients take the way back."""
    sent: Tensor = _autograd_function().apply(rows, leaving, arriving, group)
    return sent


@functools.cache
def _autograd_function() -> Any:
    """The autograd function of `_send`, made where torch is at hand."""
    import torch
    import torch.distributed as dist

    def exchanged(rows: Any, leaving: list[int], arriving: list[int], group: Any) -> Any:
        arrived = rows.new_empty(sum(arriving), *rows.shape[1:])
        dist.all_to_all_single(arrived, rows.contiguous(), arriving, leaving, group=group)
        return arrived

    class Send(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: Any, leaving: Any, arriving: Any, group: Any) -> Any:
            ctx.way_back = (arriving, leaving, group)
            return exchanged(rows, leaving, arriving, group)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return exchanged(gradients[0], *ctx.way_back), None, None, None

    return Send


AXIS = Expert()
