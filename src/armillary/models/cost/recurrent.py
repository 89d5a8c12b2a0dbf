"""Recurrent layers as two ops each: the products of all inputs at once, and the steps one by one.

That is how fused kernels compute them (Appleyard et al. 2016, arXiv 1604.01946), so a sequence of
any length is watched at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from armillary.models.cost.event import Event, Product
from armillary.models.cost.recorder import Recorder, pausing

RECURRENT = {"lstm": (4, 5), "gru": (3, 4), "rnn_tanh": (1, 0), "rnn_relu": (1, 0)}
"""Gates of each kind, and what it keeps of a step besides its result, in hidden sizes.

An LSTM keeps its four gates and the cell, a GRU three gates and the product inside of one; what
cuDNN reserves is no smaller.
"""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a recurrent layer: its tensors, and how it is laid out."""

    kind: str
    x: torch.Tensor
    states: tuple[torch.Tensor, ...]
    weights: tuple[torch.Tensor, ...]
    has_bias: bool
    num_layers: int
    dropout: float
    bidirectional: bool
    batch_first: bool
    batch_sizes: torch.Tensor | None

    @property
    def steps(self) -> int:
        """How many steps follow one another."""
        if self.batch_sizes is not None:
            return len(self.batch_sizes)
        return int(self.x.shape[1 if self.batch_first and self.x.ndim == 3 else 0])

    @property
    def rows(self) -> int:
        """Steps of all samples together."""
        return self.x.numel() // int(self.x.shape[-1])


def run_recurrent(recorder: Recorder | None, function: Any, kind: str, args: Any) -> Any:
    """What `function`, torch's recurrent layer, gives for `args`: its output and last states."""
    is_packed = isinstance(args[1], torch.Tensor) and isinstance(args[3], (list, tuple))
    x, states, weights, sizes = args[0], args[1], args[2], None
    if is_packed:
        x, sizes, states, weights = args[:4]
    has_bias, num_layers, dropout, training, bidirectional, *rest = args[4 if is_packed else 3 :]
    states = (states,) if isinstance(states, torch.Tensor) else tuple(states)
    call = _Call(
        *(kind, x, states, tuple(weights), has_bias, num_layers),
        *(dropout if training else 0.0, bidirectional, bool(rest and rest[0]), sizes),
    )
    return _Recurrent.apply(recorder, function, args, call, x, *states, *weights)


class _Recurrent(torch.autograd.Function):
    """All layers and directions at once; its gradients have shapes only."""

    @staticmethod
    def forward(ctx: Any, recorder: Any, function: Any, args: Any, call: _Call, *taken: Any) -> Any:
        with pausing(recorder):
            given = _given(call, function, args)
            kept = [] if recorder is None else _tell(recorder, call)
        ctx.recorder, ctx.events = recorder, kept
        ctx.num_taken = len(taken)
        ctx.save_for_backward(*taken, given[0])
        if recorder is not None:
            recorder.own(list(given))
        return tuple(given)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        for event in ctx.events:
            event.num_backward_kernels += 2 * event.num_kernels
            event.add("backward_flops", 2 * event.sizes["flops"])
            event.add("backward_read_bytes", event.sizes["read_bytes"] + event.sizes["saved_bytes"])
            event.add("backward_written_bytes", event.sizes["read_bytes"])
        with pausing(ctx.recorder):
            taken = ctx.saved_tensors[: ctx.num_taken]
            made = [torch.empty_like(tensor) for tensor in taken]
        return None, None, None, None, *made


def _given(call: _Call, function: Any, args: Any) -> Any:
    if not (isinstance(call.x, FakeTensor) or call.x.is_meta):
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return function(*args)
    width = call.states[0].shape[-1] * (2 if call.bidirectional else 1)
    out = call.x.new_empty(*call.x.shape[:-1], width)
    return [out, *(torch.empty_like(state) for state in call.states)]


def _tell(recorder: Recorder, call: _Call) -> list[Event]:
    """An event for the inputs of every layer and direction, and one for its steps."""
    directions = 2 if call.bidirectional else 1
    num = call.num_layers * directions
    per_layer = len(call.weights) // num
    events = list[Event]()
    for place in range(num):
        own = call.weights[place * per_layer : (place + 1) * per_layer]
        events += _tell_layer(recorder, call, own, is_last=place >= num - directions)
    return events


def _tell_layer(
    recorder: Recorder, call: _Call, own: Sequence[torch.Tensor], *, is_last: bool
) -> tuple[Event, Event]:
    gates, kept = RECURRENT[call.kind]
    size, rows = call.x.element_size(), call.rows
    columns, inner = own[0].shape
    state = int(own[1].shape[1])
    named = [(recorder.parameters.get(recorder.key(w), ""), w.nbytes) for w in own]
    product = recorder.begin("mm", "matmul")
    product.product = Product(1, rows, columns, inner)
    product.add("read_bytes", rows * inner * size)
    product.add("written_bytes", rows * columns * size)
    product.weights = dict(n for n in named[:1] if n[0])
    scan = recorder.begin(call.kind, "scan")
    scan.product = Product(1, max(rows // call.steps, 1), columns, state)
    scan.add("read_bytes", rows * columns * size)
    scan.add("written_bytes", rows * state * size)
    handed = 0 if is_last else rows * state * size  # kept as the input of the next layer
    scan.add("saved_bytes", rows * kept * (columns // gates) * size + handed)
    scan.weights = dict(n for n in named[1:] if n[0])
    scan.num_kernels = scan.steps = call.steps
    for event, inner_size in ((product, inner), (scan, state)):
        event.sizes["flops"] = 2 * rows * columns * inner_size
        event.positions = rows * state
    return product, scan
