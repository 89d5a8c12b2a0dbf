"""What stands for functions of torch.nn.functional while a part computes."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

ORIGINAL = "_armillary_original"
Handler = Callable[..., Any]


@contextlib.contextmanager
def standing_in(handlers: Mapping[str, Handler]) -> Iterator[None]:
    """While entered, calls with DTensors of the functions named go to `handlers`.

    A handler takes the function itself, then its arguments. The names in torch.nn.functional are
    replaced: a TorchFunctionMode sees neither what torch's own modules call inside a function that
    it handles, nor what is computed again in the backward pass.
    """
    import torch

    functional: Any = torch.nn.functional
    before = {name: getattr(functional, name) for name in handlers}
    for name, handler in handlers.items():
        setattr(functional, name, _stand_in(getattr(before[name], ORIGINAL, before[name]), handler))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(functional, name, function)


def original(name: str) -> Any:
    """torch's own function of this name, whatever stands for it now."""
    import torch

    found = getattr(torch.nn.functional, name)
    return getattr(found, ORIGINAL, found)


def has_parts(args: Any, kwargs: Any) -> bool:
    """Whether there is a DTensor among the arguments of a call."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(value, DTensor) for value in (*args, *kwargs.values()))


def _stand_in(function: Any, handler: Handler) -> Any:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if has_parts(args, kwargs):
            return handler(function, *args, **kwargs)
        return function(*args, **kwargs)

    setattr(called, ORIGINAL, function)
    return called
