"""The routed experts of a model: how many, how often chosen, and what they weigh."""

from collections.abc import Iterator
from math import prod

from torch import nn

from armillary.models.experts import Experts
from armillary.models.watch import Seen
from armillary.spec import Routed


def find_routed(module: nn.Module, seen: Seen) -> tuple[Routed, ...]:
    """The `armillary.Experts` of `module`; of tokens nothing is known where no call was seen."""
    return tuple(
        _read(path, part, seen)
        for path, part in module.named_modules()
        if isinstance(part, Experts)
    )


def _read(path: str, experts: Experts, seen: Seen) -> Routed:
    parameters = list(experts.parameters())
    shapes = seen.arguments.get(path, ())
    num_chosen, token_bytes, num_tokens = 0, 0, 0
    if shapes:
        num_chosen = shapes[-1][-1]
        num_tokens = prod(shapes[0][:-1]) // seen.num_samples
        token_bytes = prod(shapes[0]) * parameters[0].element_size() // seen.num_samples
    return Routed(
        path=path,
        num_experts=experts.num_experts,
        num_chosen=num_chosen,
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        token_bytes=token_bytes,
        has_capacity=experts.capacity_factor is not None,
        num_tokens=num_tokens,
        num_tensors=len(parameters),
        unfit=next(_unfit(experts), ""),
    )


def _unfit(experts: Experts) -> Iterator[str]:
    """Parameters that are not a row for each expert, in words."""
    for name, parameter in experts.named_parameters():
        if "." in name or parameter.ndim == 0 or len(parameter) != experts.num_experts:
            yield (f"{name} of shape {tuple(parameter.shape)} for {experts.num_experts} experts")
