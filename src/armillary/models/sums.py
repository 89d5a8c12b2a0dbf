"""What a module adds up over all positions of a sample: norms by groups, the experts' balance."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from math import prod
from typing import Any

import torch

from armillary.spec import Sum


def sum_of(function: Any, path: str, num_samples: int, args: Any, kwargs: Any) -> Sum | None:
    """What a call of `function` in the module at `path` adds up, None if nothing.

    A norm by groups adds up two numbers a group and sample, a mean over tokens one an entry.
    """
    name, x = getattr(function, "__name__", ""), args[0] if args else None
    if name not in ("group_norm", "token_mean") or not isinstance(x, torch.Tensor) or x.ndim < 3:
        return None
    if name == "group_norm":
        num_groups = kwargs.get("num_groups", args[1] if len(args) > 1 else 0)
        number = 2 * x.shape[0] * num_groups if prod(x.shape[2:]) > 1 else 0
    else:
        num_groups, number = 0, prod(x.shape) // x.shape[-2]
    if not number:
        return None
    size = number * x.element_size() // num_samples
    return Sum(path=path, sample_bytes=size, num_groups=num_groups)


def count_sums(sums: Iterable[Sum]) -> tuple[Sum, ...]:
    """Equal ones of a module as one that is called as often."""
    return tuple(replace(one, num_calls=calls) for one, calls in Counter(sums).items())
