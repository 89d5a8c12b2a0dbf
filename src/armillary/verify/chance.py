"""What chance decides in a step, held still: what is drawn depends on the layout, by intent."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DROPOUTS = {
    nn.functional.dropout,
    nn.functional.dropout1d,
    nn.functional.dropout2d,
    nn.functional.dropout3d,
    nn.functional.alpha_dropout,
    nn.functional.feature_alpha_dropout,
}


class WithoutDropout(TorchFunctionMode):
    """Dropout does nothing inside."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in DROPOUTS:
            return args[0] if args else kwargs["input"]
        kwargs = kwargs or {}
        if function is nn.functional.scaled_dot_product_attention:
            causal = dict(zip(("is_causal",), args[5:6], strict=False))
            args, kwargs = args[:4], {**kwargs, **causal, "dropout_p": 0.0}
        return function(*args, **kwargs)


class WithoutNoise(TorchFunctionMode):
    """Random numbers that a model draws inside are the middle of what they are drawn from.

    Those of `MIDDLES`; choices between whole things, such as `torch.multinomial`, stay drawn.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is nn.functional.gumbel_softmax:
            return _without_gumbel(*args, **kwargs)
        drawn = function(*args, **kwargs)
        if function in MIDDLES:
            middle = MIDDLES[function](*args, **kwargs)
            with torch.no_grad():
                drawn.copy_(middle) if isinstance(middle, torch.Tensor) else drawn.fill_(middle)
        return drawn


def _without_gumbel(
    logits: torch.Tensor, tau: float = 1.0, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> torch.Tensor:
    """A softmax, for the same noise everywhere changes nothing of it."""
    soft = (logits / tau).softmax(dim)
    if not hard:
        return soft
    whole = torch.zeros_like(logits).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
    return whole - soft.detach() + soft


def _of_uniform(_: Any, low: float = 0.0, high: float = 1.0, **more: Any) -> float:
    return 0.5 * (more.get("from", low) + more.get("to", high))


MIDDLES: dict[Any, Callable[..., Any]] = {
    torch.rand: lambda *_, **__: 0.5,
    torch.rand_like: lambda *_, **__: 0.5,
    torch.randn: lambda *_, **__: 0.0,
    torch.randn_like: lambda *_, **__: 0.0,
    torch.bernoulli: lambda input, *_, **__: (input > 0.5).to(input.dtype),
    torch.normal: lambda mean, *_, **__: mean,
    torch.Tensor.uniform_: _of_uniform,
    torch.Tensor.normal_: lambda _, mean=0.0, *__, **___: mean,
    torch.Tensor.exponential_: lambda _, lambd=1.0, **__: math.log(2.0) / lambd,
}
"""The median of what each draws from: its arguments are those of the function."""
