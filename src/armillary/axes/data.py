"""The data axis: every rank holds the whole model and its own samples; gradients are averaged."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from armillary.axes.batch.counted import counted
from armillary.axes.batch.times import num_reductions
from armillary.axes.batch.units import dense_units, expert_units
from armillary.axes.door import Refusal, Shares, Transfer, refuse_batch_norm
from armillary.spec import Layout, ModelGraph, Op
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import DeviceMesh


class Data:
    """Replicas that average their gradients in buckets, during the backward pass.

    Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel
    Training", VLDB 13(12). Beside the sharded axis the replicas are of shards (HSDP).
    """

    name = "data"
    order = 1
    borrows: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = {"bucket_mib": ("25", "5", "100")}
    splits_batch = True
    splits_module = False
    shares_parameters = False
    sees_calls = False

    def admits(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Refusal]:
        return refuse_batch_norm(self.name, graph, layouts)

    def divides(self, graph: ModelGraph, layouts: Layouts) -> Shares:
        whole = np.ones(layouts.num_layouts)
        return Shares(
            parameters=whole,
            gradients=whole,
            optimizer_state=whole,
            samples=whole / layouts.degree(self.name),
        )

    def computes(self, op: Op, layouts: Layouts) -> None:
        """Ops as they are, of its own samples."""

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        """Whole gradients in one stream of buckets, or unit by unit where FSDP2 averages them.

        Beside the expert axis only the experts' gradients are averaged over these ranks alone.
        """
        shards, has_replicas = layouts.degree("sharded"), layouts.degree(self.name) > 1
        alone = has_replicas & (layouts.degree("expert") == 1)
        by_unit = np.any(
            [layouts.degree(a) > 1 for a in ("sharded", "tensor", "sequence", "pipeline")], axis=0
        )
        streams: list[Any] = [("", float(graph.parameter_bytes), alone & ~by_unit)]
        streams += [
            (unit.path, unit.bytes, (alone & by_unit) * unit.per_rank)
            for unit in dense_units(graph, layouts)
        ]
        streams += [
            (unit.path, unit.bytes, has_replicas * unit.per_rank)
            for unit in expert_units(graph, layouts)
        ]
        return [
            Transfer(
                collective="all_reduce",
                group=(self.name,),
                bytes=size / shards,
                per_step=times * num_reductions(layouts),
                hidden_behind="backward",
                path=path,
                carries="gradients",
                rounds=num_reductions(layouts),
            )
            for path, size, times in streams
        ] + counted(self.name, graph, layouts)

    def apply(
        self, module: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
    ) -> "nn.Module":
        """`module` as it is: `axes/reduction.py` averages over all axes that split the batch."""
        return module


AXIS = Data()
