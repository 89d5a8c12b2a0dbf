"""One call of a model as the operations it runs: what each takes, and what it gives."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from armillary.models.watch import Call

TAKEN_WHOLE = frozenset(
    {
        *("linear", "embedding", "scaled_dot_product_attention", "multi_head_attention_forward"),
        *("conv1d", "conv2d", "conv3d", "group_norm", "layer_norm", "rms_norm", "matmul", "bmm"),
        *("pad", "interpolate", "__matmul__", "lstm", "gru", "rnn_tanh", "rnn_relu"),
        *(f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg") for n in (1, 2, 3)),
    }
)
"""Functions of torch that are noted by name; all others are noted as the operators inside."""
DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the call: its number in the order of making, shape, bytes, and the parameter
    that it is, if it is one.
    """

    number: int
    shape: tuple[int, ...]
    num_bytes: int
    parameter: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its name, where in the model, its arguments with a `Value` a tensor."""

    name: str
    path: str
    is_pointwise: bool
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Value, ...]

    @property
    def inputs(self) -> list[Value]:
        """The tensors among the arguments, in order."""
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Value)]

    def num_tokens(self, x: Value) -> int:
        """The tokens of a sample that a linear map takes as `x`, 0 where there is no such dim."""
        return x.shape[1] if self.name == "linear" and len(x.shape) == 3 else 0

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


@dataclass(slots=True)
class Operations:
    """The operations of a call in order, and the tensors that the model gave.

    `draws` says where dropout would draw in training: the module, and the steps noted before.
    """

    steps: list[Operation] = field(default_factory=list)
    results: set[int] = field(default_factory=set)
    draws: list[tuple[str, int]] = field(default_factory=list)


def note(module: nn.Module, call: Call) -> Operations:
    """The operations of `call(module)`, a forward pass in evaluation; nothing is changed."""
    notes = _Notes(module)
    handles = []
    for path, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(_Push(notes.stack, path)))
        handles.append(part.register_forward_hook(_Pop(notes, is_root=part is module)))
    was_training = module.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), notes.operators, notes.functions:
            call(module.eval())
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    return notes.found


@dataclass(slots=True)
class _Push:
    stack: list[str]
    path: str

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.stack.append(self.path)


@dataclass(slots=True)
class _Pop:
    notes: "_Notes"
    is_root: bool

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.notes.stack.pop()
        if self.is_root:
            leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
            self.notes.found.results |= {self.notes.value(leaf).number for leaf in leaves}


class _Notes:
    """What was noted so far, and the numbers of the tensors that are alive."""

    def __init__(self, module: nn.Module) -> None:
        self.found, self.stack = Operations(), list[str]()
        self.values = WeakTensorKeyDictionary()
        self.count, self.is_inside = 0, False
        self.padded = {
            path
            for path, part in module.named_modules()
            if isinstance(part, _ConvNd) and part.padding_mode != "zeros"
        }
        for path, parameter in module.named_parameters():
            self.values[parameter] = self._new(parameter, path)
        self.functions, self.operators = _Functions(self), _Operators(self)

    def _new(self, tensor: torch.Tensor, parameter: str = "") -> Value:
        self.count += 1
        num_bytes = tensor.numel() * tensor.element_size()
        return Value(self.count, tuple(tensor.shape), num_bytes, parameter)

    def value(self, tensor: torch.Tensor) -> Value:
        known: Value | None = self.values.get(tensor)
        if known is None:
            known = self.values[tensor] = self._new(tensor)
        return known

    def add(
        self, name: str, function: Callable[..., Any], args: Any, kwargs: Any, pointwise: bool
    ) -> Any:
        """Run `function` and note it, where the model calls it; what it returns."""
        if not self.stack:
            return function(*args, **kwargs)
        args_seen, kwargs_seen = tree_map_only(torch.Tensor, self.value, (args, kwargs))
        output = function(*args, **kwargs)
        if name == "pad" and self.stack[-1] in self.padded:
            # a convolution's own padding, which is done where it runs: it takes what is padded
            self.values[output] = self.value(args[0])
            return output
        outputs = tuple(self._outputs(tree_leaves(output)))
        self.found.steps.append(
            Operation(name, self.stack[-1], pointwise, tuple(args_seen), kwargs_seen, outputs)
        )
        return output

    def _outputs(self, leaves: Iterable[Any]) -> Iterable[Value]:
        """What comes out is new, also where it was written into what came in."""
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                self.values[leaf] = self._new(leaf)
                yield self.values[leaf]


class _Functions(TorchFunctionMode):
    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self.notes = notes

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if name in DROPOUTS and self.notes.stack and kwargs.get("p", (*args, 0.5, 0.5)[1]):
            self.notes.found.draws.append((self.notes.stack[-1], len(self.notes.found.steps)))
        if name not in TAKEN_WHOLE or self.notes.is_inside:
            return function(*args, **kwargs)
        self.notes.is_inside = True
        try:
            return self.notes.add(name, function, args, kwargs, pointwise=False)
        finally:
            self.notes.is_inside = False


class _Operators(TorchDispatchMode):
    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self.notes = notes

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.notes.is_inside or function.namespace == "prim":  # a device, asked for
            return function(*args, **kwargs)
        name = function.overloadpacket.__name__
        is_pointwise = torch.Tag.pointwise in function.tags
        return self.notes.add(name, function, args, kwargs, is_pointwise)
