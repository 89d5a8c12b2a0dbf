"""What one rank computes and keeps for one micro batch: seconds and bytes of the model's ops."""

# Shapes: K distinct degrees of the axes that cut work, M micro batch sizes, R regions, P precisions
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from armillary.axes import Axis, Part, discover
from armillary.core import compute
from armillary.plan import habits
from armillary.plan.grid import Column, Grid
from armillary.plan.messages import activation_bytes
from armillary.plan.software import Software
from armillary.plan.work import Parts, Work
from armillary.spec import Device, ModelGraph, Op, Segment

ENTRY = Op(path="", kind="stream", name="entry", tokens=True)
"""What stands for the activations between blocks: whole but for the positions of a rank."""

FULL_PRODUCTS = ("float32", "float64")
"""The precisions whose products are computed in full, by units that are not for matrices."""


def price_parts(
    graph: ModelGraph,
    device: Device,
    software: Software,
    grid: Grid,
    known: dict[bytes, Parts] | None = None,
) -> Parts:
    """The work of every part of `graph` for each row, micro batch, region and precision.

    What grids with the same keys need is kept in `known`, of one graph, device and software.
    """
    keys, chosen = Keys.of(graph, grid)
    known = {} if known is None else known
    if keys.identity not in known:
        known[keys.identity] = _parts(graph, device, software, keys)
    return known[keys.identity].rows(chosen)


def _parts(graph: ModelGraph, device: Device, software: Software, keys: "Keys") -> Parts:
    """Those of the keys alone."""
    grid = keys.grid
    rates = rates_of(device, software, grid)
    rates16 = rates
    if keys.is_quantised.any():
        rates16 = rates_of(device, software, habits.in_16_bits(grid, device))
    before = after = blocks = keys.nothing()
    block, num_blocks = keys.nothing(), 0
    for segment in graph.segments:
        work = _segment(segment, graph, (rates, rates16), software, keys)
        if segment.path:
            blocks, num_blocks = blocks.then(work, segment.repeats), num_blocks + segment.repeats
            block = block.dearer(work)
        elif segment.after:
            after = after + work
        else:
            before = before + work
    return Parts(
        before=before,
        blocks=blocks,
        after=after,
        block=block,
        num_blocks=num_blocks,
        entry_share=keys.part(ENTRY).rows,
    )


class Keys:
    """What the price of an op depends on, each in the shape that broadcasts.

    Of rows with the same degrees along the axes that divide ops one is priced for all.
    """

    def __init__(self, grid: Grid, axes: Sequence[Axis]) -> None:
        self.grid = grid
        self.samples = grid.along("micro_batch_size", grid.micro_batch_sizes).astype(np.float64)
        self.table, self.shape = grid.table(("degrees", "region"), 1)
        self.is_single = grid.along("precision", [p == "float32" for p in grid.precisions])
        self.is_quantised = grid.along(
            "precision", [p in habits.QUANTISED for p in grid.precisions]
        )
        self.axes = axes

    @classmethod
    def of(cls, graph: ModelGraph, grid: Grid) -> "tuple[Keys, NDArray[np.int64]]":
        """The keys of a grid, and by row which of them is its own."""
        few, _ = grid.rows([0]).table(("degrees",), 1)
        ops = [op for segment in graph.segments for op in segment.ops]
        axes = [
            axis
            for name, axis in discover().items()
            if name in grid.degrees and any(axis.computes(op, few) is not None for op in ops)
        ]
        columns = np.stack([np.ones_like(grid.order), *(grid.degrees[a.name] for a in axes)])
        _, first, index = np.unique(columns, axis=1, return_index=True, return_inverse=True)
        return cls(grid.rows(first), axes), index.ravel()

    @cached_property
    def identity(self) -> bytes:
        """Equal for keys that are equal."""
        grid = self.grid
        words = repr(([axis.name for axis in self.axes], grid.regions, grid.precisions))
        columns = [grid.degrees[axis.name] for axis in self.axes]
        numbers = [column.tobytes() + b";" for column in (grid.micro_batch_sizes, *columns)]
        return words.encode() + b";".join(numbers)

    def nothing(self) -> Work:
        """No work, in the shape of the keys."""
        zero = np.zeros((self.shape[0], *[1] * (len(self.shape) - 1)))
        return Work(*(zero for _ in fields(Work)))

    def part(self, op: Op) -> Part:
        """What part of the op a rank computes, of one sample of its own."""
        whole = np.ones(self.shape)
        sizes = {f.name: whole for f in fields(Part)}
        for axis in self.axes:
            own = axis.computes(op, self.table)
            if own is not None:
                for name, size in sizes.items():
                    sizes[name] = size * getattr(own, name).reshape(self.shape)
        return Part(**sizes)


def rates_of(device: Device, software: Software, grid: Grid) -> compute.Rates:
    """What the device does in a second under the software, in every precision of the grid.

    Raises: `SpecError` if the peak of a precision is not known.
    """
    found = [device.efficiency_of(p) for p in grid.precisions]
    names = [f.name for f in fields(compute.Rates)]
    measured = {
        name: grid.along("precision", [getattr(e, name) for e in found])
        for name in names
        if hasattr(found[0], name)
    }
    wide = [device.efficiency_of(p) for p in habits.in_16_bits(grid, device).precisions]
    for name in habits.OF_QUANTISING:
        measured[name] = grid.along("precision", [getattr(e, name) for e in wide])
    return compute.Rates(
        peak_flops_per_s=grid.along("precision", [device.peak(p) for p in grid.precisions]),
        memory_bytes_per_s=device.memory_bytes_per_s,
        element_bytes=grid.along("precision", [activation_bytes(p) for p in grid.precisions]),
        is_full=grid.along("precision", [p in FULL_PRODUCTS for p in grid.precisions]),
        stream_start_s=software.stream_start_s * np.minimum(software.stream_passes, 1.0),
        **measured,
    ).scaled(
        matmul_fraction=software.kernel_fraction,
        attention_fraction=software.attention_fraction,
        stream_fraction=1.0 / software.stream_passes,
    )


def _segment(
    segment: Segment,
    graph: ModelGraph,
    both_rates: tuple[compute.Rates, compute.Rates],
    software: Software,
    keys: Keys,
) -> Work:
    """The ops one after the other, and what the host needs to launch their kernels.

    `both_rates` are those of the grid's precisions, and of what stays in 16 bits there.
    """
    rates, rates16 = both_rates
    casts = np.where(rates.is_full, 1.0, 1.0 + software.cast_kernels)
    own_s = np.asarray(software.launch_s, np.float64)
    launch_s = np.where(own_s > 0, own_s, rates.launch_s) * casts
    total = keys.nothing()
    for task, number in habits.tasks(segment).items():
        op = task.op
        own = rates if habits.is_quantised(op) else rates16
        is_again = task.is_needed_again or not software.stops_early
        work = replace(
            _op(op, graph, own, software, keys, task.is_in_attention),
            **({} if is_again else {"whole_again_s": 0.0 * keys.samples}),
            forward_launch_s=total.forward_launch_s * 0.0 + launch_s * op.count * op.num_kernels,
            backward_launch_s=total.backward_launch_s * 0.0
            + launch_s * op.count * op.num_backward_kernels,
        )
        total = total.then(work, number * habits.times_run(task, software, keys))
    waited_s = software.experts_s * any(op.experts for op in segment.ops)
    return replace(
        total,
        forward_s=total.forward_s + waited_s,
        whole_again_s=total.whole_again_s + waited_s,
        backward_input_s=total.backward_input_s + waited_s,
    )


def _op(
    op: Op,
    graph: ModelGraph,
    rates: compute.Rates,
    software: Software,
    keys: Keys,
    is_in_attention: bool = False,
) -> Work:
    """One op of a block, all its calls; `is_in_attention` that it makes or takes scores."""
    own = keys.part(op)
    scale = rates.element_bytes / graph.element_bytes
    grown = keys.samples * (own.rows * own.columns * own.inner * own.batch)
    saved = (
        grown
        * (op.saved_bytes - op.unscaled_saved_bytes)
        * scale
        * habits.kept_of(op, software, keys)
    )
    saved = (saved + grown * op.unscaled_saved_bytes + op.constant_saved_bytes) * op.count
    workspace = grown * op.workspace_bytes * scale
    if software.loss_bytes and op.cut == "words" and op.kind == "stream":
        workspace = 0.0 * workspace
        saved = workspace + grown * op.written_bytes / graph.element_bytes * software.loss_bytes
    parameters = op.parameter_bytes * graph.num_parameters / max(graph.parameter_bytes, 1)
    held = parameters * (1 if op.shares_parameters else op.count) * own.parameters
    forward, back_input, back_weight = (
        op.count * habits.slower(op, graph, rates, software, keys) * part
        for part in _seconds(op, graph, rates, keys, own)
    )
    kept = habits.share_kept(op, software, is_in_attention)
    written = grown * op.written_bytes * scale * op.count
    nothing = np.zeros_like(forward)
    return Work(
        forward_s=forward,
        backward_input_s=back_input,
        backward_weight_s=back_weight * (software.trains_weights or not op.parameter_bytes),
        again_s=(1.0 - kept) * forward,
        whole_again_s=forward,
        forward_launch_s=nothing,
        backward_launch_s=nothing,
        saved_bytes=saved,
        selective_bytes=kept * (saved if software.selective_keeps == "attention" else written),
        workspace_bytes=workspace,
        num_parameters=held,
        num_expert_parameters=held if op.experts else nothing,
        flops=grown * (op.flops + op.backward_flops) * op.count,
    )


def _seconds(
    op: Op, graph: ModelGraph, rates: compute.Rates, keys: Keys, own: Part
) -> tuple[Column, Column, Column]:
    """Seconds of one call: forward, and backward for activations and for parameters."""
    seconds = {
        "matmul": _matmul,
        "convolution": _convolution,
        "attention": _attention,
        "scan": _scan,
    }.get(op.kind, _stream)
    return seconds(op, graph, rates, keys, own)


def _matmul(
    op: Op, graph: ModelGraph, rates: compute.Rates, keys: Keys, own: Part
) -> tuple[Column, Column, Column]:
    samples = (1.0, keys.samples) if op.batch_is_samples else (keys.samples, 1.0)
    rows, batch = op.rows * own.rows * samples[0], op.batch * own.batch * samples[1]
    columns, inner = op.columns * own.columns, op.inner * own.inner
    forward = compute.matmul_s(rows, columns, inner, batch, rates)
    of_inputs = compute.matmul_s(rows, inner, columns, batch, rates)
    of_weights = compute.matmul_s(inner, columns, rows, batch, rates)
    has_inputs = op.backward_flops > 1.5 * op.flops or not op.parameter_bytes
    if habits.is_quantised(op) and keys.is_quantised.any():
        cast_s = keys.is_quantised * compute.stream_s(habits.CAST_BYTES, rates)
        forward = forward + rows * inner * batch * cast_s * (op.saved_bytes > 0)
        of_inputs = of_inputs + rows * columns * batch * cast_s
    return forward, of_inputs * has_inputs, of_weights * (op.backward_flops > 0)


def _convolution(
    op: Op, graph: ModelGraph, rates: compute.Rates, keys: Keys, own: Part
) -> tuple[Column, Column, Column]:
    """Both gradients take as many flops as the forward pass, with the sizes in other places."""
    shared = keys.samples * (own.rows * own.columns * own.inner * own.batch)
    scale = rates.element_bytes / graph.element_bytes
    filters = op.parameter_bytes * own.parameters
    rows = op.rows * own.rows * (1.0 if op.batch_is_samples else keys.samples)
    sizes = (rows, op.columns * own.columns, op.inner * own.inner)
    inputs = max(op.read_bytes, 1) / graph.element_bytes
    taps = op.rows * op.inner * op.batch / inputs
    has_inputs = op.backward_flops > 1.5 * op.flops or not op.parameter_bytes
    has_gradient = op.backward_flops > 0
    moved = (shared * (op.read_bytes + op.written_bytes) + filters) * scale
    seconds = partial(
        compute.convolution_s, taps=taps, rates=rates, is_depthwise=op.columns == 1 and op.batch > 1
    )
    forward = seconds(shared * op.flops, sizes, moved)
    back = shared * (op.backward_read_bytes + op.backward_written_bytes)
    back = (back / (1.0 + has_inputs) + filters) * scale
    gradient = seconds(shared * op.flops, sizes, back) * has_gradient
    return forward, gradient * has_inputs, gradient


def _attention(
    op: Op, graph: ModelGraph, rates: compute.Rates, keys: Keys, own: Part
) -> tuple[Column, Column, Column]:
    shared = keys.samples * (own.rows * own.columns * own.inner * own.batch)
    half = 0.5 if op.causal else 1.0
    scale = rates.element_bytes / graph.element_bytes
    moved = shared * (op.read_bytes + op.written_bytes) * scale
    back = shared * (op.backward_read_bytes + op.backward_written_bytes) * scale
    forward = compute.attention_s(shared * op.flops * half, moved, rates)
    return forward, compute.attention_s(shared * op.backward_flops * half, back, rates), 0 * forward


def _scan(
    op: Op, graph: ModelGraph, rates: compute.Rates, keys: Keys, own: Part
) -> tuple[Column, Column, Column]:
    rows = op.rows * keys.samples
    forward = compute.scan_s(op.steps, rows, op.columns * own.columns, op.inner, rates)
    back = compute.scan_s(op.steps, rows, op.inner, op.columns * own.columns, rates)
    weights = compute.matmul_s(op.inner, op.columns * own.columns, rows * op.steps, 1.0, rates)
    return forward, back, weights


def _stream(
    op: Op, graph: ModelGraph, rates: compute.Rates, keys: Keys, own: Part
) -> tuple[Column, Column, Column]:
    shared = keys.samples * (own.rows * own.columns * own.inner * own.batch)
    scale = rates.element_bytes / graph.element_bytes
    moved = shared * (op.read_bytes + op.written_bytes) + op.constant_bytes
    back = shared * (op.backward_read_bytes + op.backward_written_bytes) + op.constant_bytes
    started_s = op.num_kernels * rates.stream_start_s
    forward = compute.stream_s(moved * scale, rates) + started_s
    back_s = compute.stream_s(back * scale, rates) + op.num_backward_kernels * rates.stream_start_s
    return forward, back_s, 0.0 * forward
