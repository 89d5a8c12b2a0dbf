"""The sharded axis: parameters, gradients and optimiser state cut over ranks (ZeRO-3, FSDP2)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from armillary.axes.door import Refusal, Shares, Transfer, refuse_batch_norm
from armillary.spec import Layout, ModelGraph, SpecError
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import DeviceMesh


class Sharded:
    """Parameters gathered block by block before use, gradients reduced to the shard that owns them.

    Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion
    Parameter Models", SC20 (arXiv 1910.02054); Zhao et al. 2023, "PyTorch FSDP", VLDB 16(12).
    """

    name = "sharded"
    borrows: tuple[str, ...] = ()
    splits_batch = True

    def admits(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Refusal]:
        return refuse_batch_norm(self.name, graph, layouts)

    def divides(self, graph: ModelGraph, layouts: Layouts) -> Shares:
        share = 1.0 / layouts.degree(self.name)
        return Shares(parameters=share, gradients=share, optimizer_state=share, samples=share)

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        return [
            transfer
            for path, size in graph.unit_bytes.items()
            for transfer in self._of_unit(path, size, layouts)
        ]

    def _of_unit(self, path: str, size: int, layouts: Layouts) -> list[Transfer]:
        """A block is gathered twice, forward and backward; the root stays gathered in between."""
        is_sent = (layouts.degree(self.name) > 1).astype(np.float64)
        whole = np.full(layouts.num_layouts, float(size))
        gathers = [("all_gather_into_tensor", "forward", is_sent)]
        if path:
            gathers.append(("all_gather_into_tensor", "backward", is_sent))
        return [
            Transfer(
                collective=collective,
                group=(self.name,),
                bytes=whole,
                per_step=times,
                hidden_behind=phase,
                path=path,
            )
            for collective, phase, times in [
                *gathers,
                ("reduce_scatter_tensor", "backward", is_sent),
            ]
        ]

    def apply(
        self, module: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
    ) -> "nn.Module":
        from torch.distributed.fsdp import fully_shard

        shard_mesh = mesh[self.name]
        if layout.degree("data") > 1:
            shard_mesh = mesh[_replicas_outside(mesh.mesh_dim_names or ())]
        for block in graph.blocks:
            fully_shard(module.get_submodule(block.path), mesh=shard_mesh)
        fully_shard(module, mesh=shard_mesh)
        return module


def _replicas_outside(axes: tuple[str, ...]) -> tuple[str, str]:
    if axes.index("data") > axes.index("sharded"):
        raise SpecError(
            "layout.sharded",
            "named before data",
            "axes are named outermost first, and replicas are of whole sets of shards "
            "(axes/sharded.py)",
            "name data before sharded",
        )
    return ("data", "sharded")


AXIS = Sharded()
