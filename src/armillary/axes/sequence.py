"""The sequence axis: every rank computes for its own part of each sample's positions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes.attention.heads import sent_key_heads
from armillary.axes.batch.times import num_calls, num_reductions
from armillary.axes.door import Refusal, Shares, Transfer, parts, refuse
from armillary.axes.regions.messages import is_cut
from armillary.spec import Attention, Layout, ModelGraph, SpecError, Stencil
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

    def admits(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Refusal]:
        positions = graph.positions
        everywhere = np.ones(layouts.num_layouts, dtype=bool)
        if graph.recurrent:
            return [
                self._refuse(
                    layouts,
                    everywhere,
                    f"degree {{degree}} for {graph.name}, where {graph.recurrent[0]} is recurrent",
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
        refusals = [self._refuse_batch_norm(graph, layouts)]
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

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        found = self._gradients(graph, layouts)
        for attention in self._cut(graph):
            found += self._of_ring(attention, graph, layouts)
            found += self._of_heads(attention, graph, layouts)
        for stencil in graph.positions.stencils:
            found += self._of_rows(stencil, graph, layouts)
        return found

    def _gradients(self, graph: ModelGraph, layouts: Layouts) -> list[Transfer]:
        """Of all parameters that a rank holds: in one stream, or by FSDP2 one by one.

        At most: one that is used on what is whole, such as a head after a mean, needs no sum.
        """
        from armillary.axes import discover

        held, by_fsdp = np.ones(layouts.num_layouts), np.zeros(layouts.num_layouts, dtype=bool)
        for name, axis in discover().items():
            if name != self.name and name != "sharded":  # whose shards are of what was added up
                held = held * axis.divides(graph, layouts).parameters
            by_fsdp |= axis.splits_batch & (layouts.degree(name) > 1)
        held_tensors = graph.num_tensors / layouts.degree("pipeline")
        count = np.where(by_fsdp, held_tensors, 1.0)
        size = graph.parameter_bytes * held / count
        times = np.where(by_fsdp, count * num_reductions(layouts), 1.0)
        return [self._sent("all_reduce", layouts, size, times, "backward", "")]

    def _samples(self, layouts: Layouts) -> Column:
        """Samples that a rank takes in one micro batch."""
        from armillary.axes import discover

        count = layouts.num_samples.astype(np.float64)
        for name, axis in discover().items():
            count = count / (layouts.degree(name) if axis.splits_batch else 1)
        return count

    def _sizes(
        self, attention: Attention, graph: ModelGraph, layouts: Layouts
    ) -> tuple[Column, Column]:
        """Bytes of the queries and of the keys of a micro batch, of the heads that a rank has."""
        is_split = any(split.path.startswith(attention.path) for split in graph.splits)
        samples = self._samples(layouts) / (layouts.degree("tensor") if is_split else 1)
        return attention.query_bytes * samples, attention.key_bytes * samples

    def _of_ring(self, attention: Attention, graph: ModelGraph, layouts: Layouts) -> list[Transfer]:
        """Keys and values once to every other rank in each pass, their gradients to all."""
        if attention.key_length != attention.length:
            return []
        degrees = layouts.degree(self.name).astype(np.float64)
        is_sent = self._option(layouts, "attention") == "ring"
        query, key = self._sizes(attention, graph, layouts)
        turns = is_sent & attention.is_causal & (attention.length % (2 * degrees) == 0)
        turns &= self._option(layouts, "balance") == "zigzag"
        steps: list[tuple[str, Column, Any, str]] = [
            ("batch_isend_irecv", 2 * key, is_sent * (degrees - 1), "forward"),
            ("batch_isend_irecv", 2 * key, is_sent * (2 * degrees - 1), "backward"),
        ]
        for phase in ("forward", "backward"):
            steps += [
                ("all_to_all_single", query + 2 * key, turns, phase),
                ("all_to_all_single", query, turns, phase),
            ]
        return [
            self._sent(name, layouts, size, times * num_calls(layouts), phase, attention.path)
            for name, size, times, phase in steps
        ]

    def _of_heads(
        self, attention: Attention, graph: ModelGraph, layouts: Layouts
    ) -> list[Transfer]:
        """Queries, keys, values and the result, each turned once in each pass."""
        if attention.key_length != attention.length:
            return []
        degrees = layouts.degree(self.name)
        is_sent = self._option(layouts, "attention") == "heads"
        query, key = self._sizes(attention, graph, layouts)
        is_split = any(split.path.startswith(attention.path) for split in graph.splits)
        shares = layouts.degree("tensor") if is_split else np.ones_like(degrees)
        held = np.maximum(attention.num_key_heads // shares, 1)
        copies = np.array(
            [sent_key_heads(int(h), int(d)) / h for h, d in zip(held, degrees, strict=True)]
        )
        times = is_sent * 2.0 * num_calls(layouts)
        return [
            self._sent("all_to_all_single", layouts, size, times, phase, attention.path)
            for phase in ("", "")
            for size in (query, key * copies)
        ]

    def _of_rows(self, stencil: Stencil, graph: ModelGraph, layouts: Layouts) -> list[Transfer]:
        """The rows that a neighbour needs, and in the backward pass their gradients.

        Of a rank between others: at an end of the grid that is no ring only one side is sent.
        """
        degrees, samples = layouts.degree(self.name), self._samples(layouts)
        times = stencil.num_calls * num_calls(layouts)
        for split in graph.splits:  # whose channels a rank has a part of
            if split.path == f"{stencil.path}.weight" and split.kind in ("row", "inside"):
                is_part = is_cut(split, layouts.degree("tensor"))
                samples = samples / np.where(is_part, layouts.degree("tensor"), 1)
        return [
            self._sent(
                "batch_isend_irecv",
                layouts,
                rows * stencil.position_bytes * samples * degrees,
                times,
                phase,
                stencil.path,
            )
            for phase in ("forward", "backward")
            for rows in (stencil.before, stencil.after)
            if rows and (phase == "forward" or stencil.has_gradient)
        ]

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

        _check_order(mesh.mesh_dim_names or (), graph)
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


def _check_order(names: Sequence[str], graph: ModelGraph) -> None:
    """Refuse what torch's rules cannot flatten: tokens of routed experts cut by tensor outside."""
    if graph.routed and "tensor" in names and names.index("tensor") < names.index("sequence"):
        raise SpecError(
            "layout.sequence",
            "named after tensor, for a model with routed experts",
            "axes are named outermost first, and tensor sends most (axes/sequence.py)",
            "name sequence before tensor",
        )


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
