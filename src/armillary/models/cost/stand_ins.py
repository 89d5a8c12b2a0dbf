"""Kernels that accelerators fuse and a CPU does not, each as one op while a step is watched.

Attention, dropout, RMS norm and recurrent layers are given by autograd functions that keep what the
fused kernels keep. Of tensors without values only shapes are made; of others the values are torch's
own, their gradients are not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from armillary.models.cost.event import Event, Product
from armillary.models.cost.formulas import touched_bytes
from armillary.models.cost.recorder import Recorder, pausing
from armillary.models.cost.recurrent import RECURRENT, run_recurrent
from armillary.models.layers.attention import FLASH_BACKWARD

Function = Callable[..., Any]
TORCHS_OWN = F.scaled_dot_product_attention


class StandIns(TorchFunctionMode):
    """Fused kernels in place of torch's functions; a `recorder` is told of each.

    Without one only recurrent layers are replaced, whose every step would run otherwise.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        super().__init__()
        self.recorder = recorder
        self.own: dict[Any, Function] = (
            {}
            if recorder is None
            else {
                F.scaled_dot_product_attention: self._attend,
                F.dropout: self._drop,
                F.rms_norm: self._norm,
            }
        )

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.multi_head_attention_forward and self.own:
            with self._inside():
                return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name in RECURRENT and args and isinstance(args[0], torch.Tensor):
            return run_recurrent(self.recorder, function, name, args)
        return self.own.get(function, function)(*args, **kwargs)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Also what torch's own functions call by name, which no mode sees."""
        functional: Any = F
        kept = functional.scaled_dot_product_attention, functional.dropout
        functional.scaled_dot_product_attention, functional.dropout = self._attend, self._drop
        try:
            yield
        finally:
            functional.scaled_dot_product_attention, functional.dropout = kept

    def _drop(
        self, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Any:
        if not training or p == 0:
            return input
        return torch.native_dropout(input, p, True)[0]

    def _norm(self, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:
        return _RmsNorm.apply(self.recorder, input, weight, tuple(normalized_shape), eps)

    def _attend(
        self,
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: Any = None,
        enable_gqa: bool = False,
    ) -> Any:
        more = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale}
        more["enable_gqa"] = enable_gqa
        return _Attention.apply(self.recorder, query, key, value, attn_mask, more)


def _values(like: torch.Tensor, run: Function, empty: Function) -> Any:
    """What `run` gives, or for tensors without values what `empty` gives."""
    if isinstance(like, FakeTensor) or like.is_meta:
        return empty()
    return run()


class _Attention(torch.autograd.Function):
    """Fused attention: it keeps its inputs, its result, and a sum for every query."""

    @staticmethod
    def forward(ctx: Any, recorder: Any, q: Any, k: Any, v: Any, mask: Any, more: Any) -> Any:
        def empty() -> torch.Tensor:
            *outer, heads, length, _ = q.shape
            return q.new_empty(*outer, length, heads, v.shape[-1]).transpose(-2, -3)

        with pausing(recorder):
            out = _values(q, lambda: TORCHS_OWN(q, k, v, **more), empty)
            sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.recorder = recorder
        ctx.event = _tell_attention(recorder, (q, k, v, mask), (out, sums), more["is_causal"])
        ctx.save_for_backward(q, k, v, out, sums, *([] if mask is None else [mask]))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        q, k, v, out, sums, *mask = ctx.saved_tensors
        with pausing(ctx.recorder):
            made = [torch.empty_like(t) for t in (q, k, v)]
            of_mask = torch.zeros_like(mask[0]) if mask and ctx.needs_input_grad[4] else None
        if ctx.event is not None:
            ctx.event.num_backward_kernels += 2
            ctx.event.add("backward_flops", int(FLASH_BACKWARD * ctx.event.sizes["flops"]))
            taken = (gradients[0], q, k, v, out, sums, *mask)
            ctx.event.add("backward_read_bytes", sum(map(touched_bytes, taken)))
            ctx.event.add("backward_written_bytes", sum(map(touched_bytes, made)))
        return None, *made, of_mask, None


def _tell_attention(recorder: Any, taken: Any, given: Any, causal: bool) -> Event | None:
    if recorder is None:
        return None
    q, k, v, mask = taken
    event: Event = recorder.begin("scaled_dot_product_attention", "attention")
    heads, length, size = q.shape[-3:]
    batch = q.numel() // (length * size)
    event.product = Product(batch, length, k.shape[-2], size)
    event.sizes["flops"] = 2 * batch * length * k.shape[-2] * (size + v.shape[-1])
    event.positions = given[0].numel()
    read = [q, k, v] + ([] if mask is None else [mask])
    event.add("read_bytes", sum(map(touched_bytes, read)))
    event.attention = {
        "heads": heads,
        "key_heads": k.shape[-3],
        "length": length,
        "key_length": k.shape[-2],
        "head_dim": size,
        "value_dim": v.shape[-1],
        "causal": int(causal),
    }
    for tensor in read:
        recorder.key(tensor)
    recorder.give(event, list(given))
    recorder.mark(event, read, list(given))
    return event


class _RmsNorm(torch.autograd.Function):
    """The fused norm: it keeps what it takes, and a deviation for every row."""

    @staticmethod
    def forward(ctx: Any, recorder: Any, x: Any, weight: Any, shape: Any, eps: Any) -> Any:
        rows = x.shape[: x.ndim - len(shape)]
        with pausing(recorder):
            run = partial(F.rms_norm, x, shape, weight, eps)
            out = _values(x, run, partial(torch.empty_like, x))
            scale = x.new_empty(*rows, *[1] * len(shape), dtype=torch.float32)
        ctx.recorder, ctx.event = recorder, None
        if recorder is not None:
            event = recorder.begin("_fused_rms_norm", "stream")
            event.positions = out.numel()
            event.add("read_bytes", touched_bytes(x))
            if weight is not None:
                label = recorder.parameters.get(recorder.key(weight))
                event.weights |= {label: weight.nbytes} if label else {}
            recorder.key(x)
            recorder.give(event, [out, scale])
            recorder.mark(event, [x], [out])
            ctx.event = event
        ctx.save_for_backward(x, scale, *([] if weight is None else [weight]))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, scale, *weight = ctx.saved_tensors
        with pausing(ctx.recorder):
            of_x = torch.empty_like(x)
            of_weight = torch.empty_like(weight[0]) if weight else None
        if ctx.event is not None:
            ctx.event.num_backward_kernels += 2
            taken = (gradients[0], x, scale)
            ctx.event.add("backward_read_bytes", sum(map(touched_bytes, taken)))
            ctx.event.add("backward_written_bytes", touched_bytes(of_x))
        return None, of_x, of_weight, None, None
