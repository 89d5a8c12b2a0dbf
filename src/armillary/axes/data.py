"""The data axis: every rank holds the whole model and its own samples; gradients are averaged."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from armillary.axes.door import Refusal, Shares, Transfer, refuse_batch_norm
from armillary.spec import Layout, ModelGraph
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
    options: Mapping[str, tuple[str, ...]] = {}
    splits_batch = True
    splits_module = False
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

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        """Whole gradients in one stream of buckets; shards of them unit by unit (HSDP)."""
        shards = layouts.degree("sharded")
        has_replicas = layouts.degree(self.name) > 1
        streams = [("", graph.parameter_bytes, has_replicas & (shards == 1))] + [
            (path, size, has_replicas & (shards > 1)) for path, size in graph.unit_bytes.items()
        ]
        return [
            Transfer(
                collective="all_reduce",
                group=(self.name,),
                bytes=size / shards,
                per_step=is_sent.astype(np.float64),
                hidden_behind="backward",
                path=path,
            )
            for path, size, is_sent in streams
        ]

    def apply(
        self, module: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
    ) -> "nn.Module":
        """`module` as it is: `axes/reduction.py` averages over all axes that split the batch."""
        return module


AXIS = Data()
