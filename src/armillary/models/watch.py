"""What one call of a model shows: the tensors that its modules hand on, and its attentions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from armillary.models.sums import sum_of
from armillary.spec import Attention, Sum

Call = Callable[[nn.Module], Any]


@dataclass(slots=True)
class Seen:
    """What was seen of a call: bytes of a module's first output by path, attentions, samples.

    `inputs` are the shapes of a module's first input and `outputs` those of its first output, by
    path, `arguments` those of all tensors it took; of a module called twice, those of the last
    call; `calls` counts the calls. `fed` are the paths whose first input is one of the model's own.
    `sums` has an entry for each call that adds up over positions.
    """

    num_samples: int = 1
    output_bytes: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    arguments: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    attentions: list[Attention] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    taken: list[torch.Tensor] = field(default_factory=list)
    fed: set[str] = field(default_factory=set)


def watch(module: nn.Module, call: Call, num_samples: int) -> Seen:
    """What `call(module)`, a forward pass of `num_samples` samples, shows; nothing is changed."""
    seen, stack = Seen(num_samples=num_samples), list[str]()
    handles = []
    for path, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(_Enter(path, stack, seen), with_kwargs=True))
        handles.append(part.register_forward_hook(_Leave(path, stack, seen)))
    was_training = module.training
    try:
        with torch.no_grad(), _Attentions(stack, seen), torch.random.fork_rng(devices=[]):
            call(module.eval())
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    return seen


@dataclass(slots=True)
class _Enter:
    path: str
    stack: list[str]
    seen: Seen

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.stack.append(self.path)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.seen.arguments[self.path] = tuple(tuple(tensor.shape) for tensor in tensors)
        self.seen.calls[self.path] = self.seen.calls.get(self.path, 0) + 1
        if not self.path:
            self.seen.taken = tensors
        if (tensor := _first(args)) is not None:
            self.seen.inputs[self.path] = tuple(tensor.shape)
            memory = tensor.untyped_storage()._cdata  # also where there is no memory
            if any(memory == taken.untyped_storage()._cdata for taken in self.seen.taken):
                self.seen.fed.add(self.path)


@dataclass(slots=True)
class _Leave:
    path: str
    stack: list[str]
    seen: Seen

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()
        if (tensor := _first(output)) is not None:
            self.seen.outputs[self.path] = tuple(tensor.shape)
            size = tensor.numel() * tensor.element_size()
            self.seen.output_bytes[self.path] = size // self.seen.num_samples


def _first(values: Any) -> torch.Tensor | None:
    return next((leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)), None)


class _Attentions(TorchFunctionMode):
    """Notes every call of scaled_dot_product_attention and what adds up over positions, and the
    module that makes it.
    """

    def __init__(self, stack: list[str], seen: Seen) -> None:
        super().__init__()
        self.stack, self.seen = stack, seen

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        functional: Any = torch.nn.functional
        attend = functional.scaled_dot_product_attention
        if function is attend:
            self._note(*args, **kwargs)
        path = self.stack[-1] if self.stack else ""
        if (found := sum_of(function, path, self.seen.num_samples, args, kwargs)) is not None:
            self.seen.sums.append(found)
        if function is not functional.multi_head_attention_forward:
            return function(*args, **kwargs)
        # no mode sees what torch's own multi-head attention calls, by its name there
        functional.scaled_dot_product_attention = self._noted(attend)
        try:
            return function(*args, **kwargs)
        finally:
            functional.scaled_dot_product_attention = attend

    def _noted(self, attend: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self._note(*args, **kwargs)
            return attend(*args, **kwargs)

        return noted

    def _note(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **others: Any,
    ) -> None:
        samples = self.seen.num_samples
        self.seen.attentions.append(
            Attention(
                path=self.stack[-1] if self.stack else "",
                num_heads=query.shape[-3],
                num_key_heads=key.shape[-3],
                length=query.shape[-2],
                key_length=key.shape[-2],
                is_causal=is_causal,
                query_bytes=query.numel() * query.element_size() // samples,
                key_bytes=key.numel() * key.element_size() // samples,
                value_bytes=value.numel() * value.element_size() // samples,
            )
        )
