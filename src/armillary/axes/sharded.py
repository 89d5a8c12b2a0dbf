"""The sharded axis: parameters, gradients and optimiser state cut over ranks (ZeRO-3, FSDP2)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from armillary.axes import discover
from armillary.axes.batch.counted import counted
from armillary.axes.batch.times import num_gathers, num_reductions
from armillary.axes.batch.units import Unit, dense_units, expert_units
from armillary.axes.door import Refusal, Shares, Transfer, refuse, refuse_batch_norm
from armillary.spec import Layout, ModelGraph, Op
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import DeviceMesh

ZERO = "sharded.zero"


class Sharded:
    """Parameters gathered block by block before use, gradients reduced to the shard that owns them.

    `zero=3` gives the gathered parameters back after the forward pass and gathers them again for
    the backward pass; `zero=2` keeps them in between; `zero=1` also keeps whole gradients until
    the last micro batch of a step. `prefetch` is how many blocks ahead parameters are gathered;
    `auto` leaves it to torch.

    Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion
    Parameter Models", SC20 (arXiv 1910.02054); Zhao et al. 2023, "PyTorch FSDP", VLDB 16(12).
    """

    name = "sharded"
    order = 3
    borrows: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = {
        "zero": ("3", "2", "1"),
        "prefetch": ("auto", "1", "2", "4"),
    }
    splits_batch = True
    splits_module = False
    shares_parameters = True
    sees_calls = False

    def admits(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Refusal]:
        return [*refuse_batch_norm(self.name, graph, layouts), *self._refuse_order(layouts)]

    def _refuse_order(self, layouts: Layouts) -> Iterator[Refusal]:
        """Replicas are of whole sets of shards: other axes of the batch are named before."""
        order = layouts.order
        before = order[: order.index(self.name)] if self.name in order else order
        for name, axis in discover().items():
            if axis.splits_batch and name != self.name and name in order and name not in before:
                yield refuse(
                    self.name,
                    layouts,
                    layouts.degree(name) > 1,
                    f"named before {name}",
                    "axes are named outermost first, and replicas are of whole sets of shards "
                    "(axes/sharded.py)",
                    f"name {name} before {self.name}",
                )

    def divides(self, graph: ModelGraph, layouts: Layouts) -> Shares:
        share = 1.0 / layouts.degree(self.name)
        zero = layouts.option(ZERO, "3")
        return Shares(
            parameters=np.where(zero == "3", share, 1.0),
            gradients=np.where(zero == "1", 1.0, share),
            optimizer_state=share,
            samples=share,
        )

    def computes(self, op: Op, layouts: Layouts) -> None:
        """Ops as they are, of its own samples."""

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        units = [*dense_units(graph, layouts), *expert_units(graph, layouts)]
        sent = [transfer for unit in units for transfer in self._of_unit(unit, layouts)]
        return sent + counted(self.name, graph, layouts)

    def _of_unit(self, unit: Unit, layouts: Layouts) -> list[Transfer]:
        """A unit gathered before it runs, and its gradients reduced to shards."""
        is_sent = (layouts.degree(self.name) > 1) * unit.per_rank
        forward, backward = num_gathers(layouts, is_root=not unit.path)
        return [
            Transfer(
                collective=collective,
                group=(self.name,),
                bytes=unit.bytes,
                per_step=is_sent * times,
                hidden_behind=phase,
                path=unit.path,
                carries=carries,
                rounds=times,
            )
            for collective, phase, times, carries in [
                ("all_gather_into_tensor", "forward", forward, "parameters"),
                ("all_gather_into_tensor", "backward", backward, "parameters"),
                ("reduce_scatter_tensor", "backward", num_reductions(layouts), "gradients"),
            ]
        ]

    def apply(
        self, module: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
    ) -> "nn.Module":
        """`module` as it is: `axes/reduction.py` shards with all axes that split the batch."""
        return module


AXIS = Sharded()
