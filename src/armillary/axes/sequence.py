"""The sequence axis: every rank computes for its own part of each sample's positions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes.attention.messages import attention_messages
from armillary.axes.batch.routed import choice_bytes
from armillary.axes.batch.summed import gradient_sums
from armillary.axes.batch.times import num_calls, rank_samples, sent_again
from armillary.axes.differing import Class
from armillary.axes.door import Part, Refusal, Shares, Transfer, part_of, parts, refuse
from armillary.axes.grids.messages import row_messages, sum_messages
from armillary.spec import Attention, Layout, ModelGraph, Op, Stencil
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import DeviceMesh

FILE = "(axes/sequence.py)"
Column = NDArray[np.float64]


class SequenceAxis:
    """Steps of a sequence, or rows of a grid, cut over ranks that hold the same samples.

    Attention reaches the other ranks' positions by a ring of keys and values (`attention=ring`),
    balanced under a causal mask (`balance=zigzag`), or by turning positions into heads
    (`attention=heads`); convolutions by an exchange of rows with the neighbours. What acts on each
    position alone needs no message, and torch's DTensor sees to sums over positions. Gradients of
    parameters are added up over the ranks.

    Source: Liu et al. 2023, arXiv 2310.01889; Jacobs et al. 2023, arXiv 2309.14509; for grids
    Dryden et al. 2019, "Improving Strong-Scaling of CNN Training by Exploiting Finer-Grained
    Parallelism", IPDPS, section III.
    """

    name = "sequence"
    order = 4
    borrows: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = {
        "attention": ("ring", "heads"),
        "balance": ("zigzag", "none"),
    }
    splits_batch = False
    splits_module = False
    shares_parameters = False
    sees_calls = True

    def differs(self, graph: ModelGraph, layout: Layout) -> Sequence[Class]:
        """Along a grid the first rank, those between and the last, which have other neighbours."""
        degree = layout.degree(self.name)
        if not graph.positions.stencils or degree == 1:
            return [Class(coordinate=0, count=degree)]
        ends = [
            Class(coordinate=0, count=1, reason="first rows of the grid"),
            Class(coordinate=degree - 1, count=1, reason="last rows of the grid"),
        ]
        return [
            *ends,
            *[Class(coordinate=1, count=degree - 2, reason="rows between")][: degree - 2],
        ]

    def admits(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Refusal]:
        positions = graph.positions
        everywhere = np.ones(layouts.num_layouts, dtype=bool)
        if graph.recurrent:
            return [
                self._refuse(
                    layouts,
                    everywhere,
                    f"degree {{degree}} for {graph.name}, of which {graph.recurrent[0]} is a "
                    "recurrent layer",
                    "a recurrent module takes one position after another",
                    "use data={degree}, or attention in its place",
                )
            ]
        if not positions.length or not (graph.attentions or graph.convolutions):
            return [
                self._refuse(
                    layouts,
                    everywhere,
                    f"degree {{degree}} for {graph.name}, which calls neither "
                    "scaled_dot_product_attention nor a convolution",
                    "positions are those of attention, or rows of a grid",
                    "use data={degree}, or write attention as "
                    "torch.nn.functional.scaled_dot_product_attention",
                )
            ]
        refusals = [self._refuse_batch_norm(graph, layouts), self._refuse_order(graph, layouts)]
        refusals += [r for a in self._cut(graph) for r in self._of_attention(a, layouts)]
        return refusals + [r for s in positions.stencils for r in self._of_stencil(s, layouts)]

    def _refuse(self, layouts: Layouts, when: Any, found: str, rule: str, fix: str) -> Refusal:
        return refuse(self.name, layouts, when, found, f"{rule} {FILE}", fix)

    def _refuse_batch_norm(self, graph: ModelGraph, layouts: Layouts) -> Refusal:
        return self._refuse(
            layouts,
            np.full(layouts.num_layouts, graph.has_batch_norm),
            "degree {degree} for a model with batch norm",
            "batch norm takes its mean over all positions, a rank holds its own",
            f"use {self.name}=1, or group norm or layer norm in the model",
        )

    def _refuse_order(self, graph: ModelGraph, layouts: Layouts) -> Refusal:
        """torch's rules cannot flatten tokens of routed experts that tensor cuts outside."""
        order = layouts.order
        is_inside = {self.name, "tensor"} <= {*order} and order.index(self.name) > order.index(
            "tensor"
        )
        return self._refuse(
            layouts,
            np.full(layouts.num_layouts, is_inside and bool(graph.routed)),
            "named after tensor, for a model with routed experts",
            "axes are named outermost first, and tensor sends most",
            "name sequence before tensor",
        )

    def _cut(self, graph: ModelGraph) -> list[Attention]:
        """The attentions whose positions are cut: of a grid all, of a sequence those of its own."""
        positions = graph.positions
        return [a for a in graph.attentions if positions.dim > 1 or a.length == positions.length]

    def _of_attention(self, attention: Attention, layouts: Layouts) -> list[Refusal]:
        degrees = layouts.degree(self.name)
        by_heads = self._option(layouts, "attention") == "heads"
        heads = degrees * layouts.degree("tensor")
        where = attention.path or "the model"
        return [
            self._refuse(
                layouts,
                attention.length % degrees != 0,
                f"degree {{degree}} does not divide the {attention.length} positions of {where}",
                "every rank holds equally many positions",
                f"use one of {_divisors(attention.length)}",
            ),
            self._refuse(
                layouts,
                by_heads & (attention.num_heads % heads != 0),
                f"degree {{degree}}, times that of the tensor axis, does not divide the "
                f"{attention.num_heads} heads of {where}",
                "by heads, every rank attends with equally many",
                f"use one of {_divisors(attention.num_heads)}, or {self.name}.attention=ring",
            ),
        ]

    def _of_stencil(self, stencil: Stencil, layouts: Layouts) -> list[Refusal]:
        degrees = layouts.degree(self.name)
        if stencil.unfit:
            return [
                self._refuse(
                    layouts,
                    np.ones(layouts.num_layouts, dtype=bool),
                    f"degree {{degree}} for {stencil.path}: {stencil.unfit}",
                    "windows of a cut grid begin at equal steps, one for every stride",
                    f"use {self.name}=1, or padding that keeps the size, or divides it by stride",
                )
            ]
        most = stencil.length // max(stencil.before, stencil.after, 1)
        return [
            self._refuse(
                layouts,
                (stencil.length % (degrees * stencil.stride) != 0) | (degrees > most),
                f"degree {{degree}} cuts the {stencil.length} rows of {stencil.path} (stride "
                f"{stencil.stride}, {max(stencil.before, stencil.after)} of a neighbour)",
                "every rank holds equally many whole strides of rows, and at least those that a "
                "neighbour needs",
                f"use one of {_divisors(stencil.length // stencil.stride, most)}",
            )
        ]

    def _option(self, layouts: Layouts, name: str) -> NDArray[np.str_]:
        return layouts.option(f"{self.name}.{name}", self.options[name][0])

    def divides(self, graph: ModelGraph, layouts: Layouts) -> Shares:
        """Parameters stay whole, and so do samples: what is cut is their activations."""
        whole = np.ones(layouts.num_layouts)
        return Shares(parameters=whole, gradients=whole, optimizer_state=whole, samples=whole)

    def computes(self, op: Op, layouts: Layouts) -> Part | None:
        return part_of(layouts, rows=1.0 / layouts.degree(self.name)) if op.tokens else None

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        samples, calls = rank_samples(layouts), num_calls(layouts)
        everywhere = np.ones(layouts.num_layouts, dtype=bool)
        sums = gradient_sums(graph, layouts, *self._gradients(graph, layouts), everywhere)
        found = [
            replace(self._sent("all_reduce", layouts, *sent, "backward", ""), carries="gradients")
            for sent in sums
        ]
        told: list[tuple[str, Iterator[Any]]] = []
        told += [(a.path, attention_messages(a, graph, layouts, samples)) for a in self._cut(graph)]
        told += [
            (s.path, row_messages(s, graph, layouts, samples)) for s in graph.positions.stencils
        ]
        on_grid = graph.positions.dim > 1 or bool(graph.positions.stencils)
        told += [
            (s.path, sum_messages(s, graph, layouts, samples))
            for s in graph.sums
            if on_grid or not s.num_groups
        ]
        told += [
            (r.path, iter([("all_gather_into_tensor", size * samples, 1, "forward", "", True)]))
            for r in graph.routed
            if (size := choice_bytes(r))
        ]
        for path, messages in told:
            for collective, size, times, phase, hidden, is_wide in messages:
                sent = self._sent(collective, layouts, size, times * calls, hidden, path)
                sent = replace(sent, is_wide=is_wide)
                found += sent_again(sent, graph, layouts) if phase == "forward" else [sent]
        return found

    def _gradients(self, graph: ModelGraph, layouts: Layouts) -> tuple[Column, Column]:
        """Bytes and number of all parameters, of those cut along the tensor axis the rank's part.

        At most: one that is used on what is whole, such as a head after a mean, needs no sum.
        """
        from armillary.axes import discover

        held = discover()["tensor"].divides(graph, layouts).parameters
        return graph.parameter_bytes * held, np.full_like(held, graph.num_tensors)

    def _sent(
        self, collective: str, layouts: Layouts, size: Any, times: Any, phase: str, path: str
    ) -> Transfer:
        is_sent = (layouts.degree(self.name) > 1).astype(np.float64)
        return Transfer(
            collective=collective,
            group=(self.name,),
            bytes=np.broadcast_to(size, (layouts.num_layouts,)).astype(np.float64),
            per_step=is_sent * np.broadcast_to(times, (layouts.num_layouts,)).astype(np.float64),
            hidden_behind=phase,
            path=path,
        )

    def apply(
        self, module: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
    ) -> "nn.Module":
        from torch.distributed.tensor import Shard

        from armillary.axes.attention.calls import attend_in_parts
        from armillary.axes.dropout import drop_alike
        from armillary.axes.grids.layers import convolve_in_parts
        from armillary.axes.linear import multiply_locally
        from armillary.axes.spmd import flow

        def chosen(name: str) -> str:
            return layout.options.get(f"{self.name}.{name}", self.options[name][0])

        positions = graph.positions
        for part in parts(module):
            cut_dim = positions.dim if positions.argument >= 0 else None
            flow(part, self.name, Shard(positions.dim), cut_dim, positions.argument)
            drop_alike(part)
            if "tensor" not in (mesh.mesh_dim_names or ()):
                multiply_locally(part)
            attending = attend_in_parts(part)
            attending.form, attending.is_balanced = chosen("attention"), chosen("balance") != "none"
            if graph.convolutions or positions.dim > 1:
                convolve_in_parts(part)
            for block in graph.blocks:
                _keep_cut(part, block.path, CutAgain(self.name, positions.dim))
        return module


def _divisors(number: int, most: int = 2**62) -> str:
    """The divisors of `number` above 1 and up to `most`, in words."""
    found = [str(d) for d in range(2, min(number, most) + 1) if number % d == 0]
    return ", ".join(found[:12]) or "1"


def _keep_cut(part: "nn.Module", path: str, hook: Callable[..., Any]) -> None:
    """Have `hook` lay what the block at `path`, if it is in `part`, takes."""
    try:
        block = part.get_submodule(path)
    except AttributeError:
        return
    block.register_forward_pre_hook(hook)


@dataclass(frozen=True, slots=True)
class CutAgain:
    """A forward pre-hook of a block: activations that came to be whole are cut by positions.

    Positions may arise inside a model, as patches of an image do, and an operator for which torch
    has no better rule makes its input whole.
    """

    axis: str
    dim: int

    def __call__(self, block: "nn.Module", args: Any) -> Any:
        if not args:
            return None
        return (self._cut(args[0]), *args[1:])

    def _cut(self, tensor: Any) -> Any:
        from torch.distributed.tensor import DTensor, Shard

        if not isinstance(tensor, DTensor) or tensor.ndim <= max(self.dim, 2):
            return tensor
        mesh = tensor.device_mesh
        dim = (mesh.mesh_dim_names or ()).index(self.axis)
        is_whole = not any(p.is_shard() for p in tensor.placements)
        if not is_whole or tensor.shape[self.dim] % mesh.size(dim):
            return tensor
        placements = list(tensor.placements)
        placements[dim] = Shard(self.dim)
        return tensor.redistribute(mesh, placements)


AXIS = SequenceAxis()
