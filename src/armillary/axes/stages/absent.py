"""Tensors and modules of another stage: their shapes are known here, their values are not.

A stage runs the model's own forward. What belongs to other stages hands on absent tensors, whose
shapes the rest of the forward may use, for positions and masks, but whose values it may not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from armillary.spec import SpecError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TENSOR_PROPERTIES = ("T", "H", "mT", "mH", "data", "real", "imag")
OF_SHAPE = (
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
    *("zeros_like", "ones_like", "full_like", "empty_like"),
)
"""Operations whose result does not depend on a tensor's values."""
LIKE_ANOTHER = ("to", "type_as", "expand_as", "view_as", "reshape_as")
"""Those whose result does not depend on the values of the second tensor."""
ABSENT = "_armillary_absent"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of an absent tensor."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"


class Known:
    """The tensors of a pass that were absent when the forward met them, and came in since."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, absent: "Tensor", tensor: "Tensor") -> None:
        """Have `tensor` stand for `absent` from now on."""
        self.found[id(absent)] = absent, tensor

    def get(self, value: Any) -> Any:
        """The tensor that stands for `value` if there is one, `value` itself otherwise."""
        found = self.found.get(id(value))
        return value if found is None else found[1]


def absent(meta: Meta, device: "torch.device", known: Known) -> "Tensor":
    """A tensor without values; operations on it give the like."""
    made: Tensor = absent_class().make(meta, device, known)
    return made


def is_absent(value: Any) -> bool:
    """Whether `value` is a tensor whose values are on another stage."""
    return isinstance(value, absent_class())


@cache
def absent_class() -> Any:
    """The class of absent tensors, made once torch is needed."""
    import torch

    class Absent(torch.Tensor):
        """Shape, dtype and device of a tensor; `payload` is the same on torch's meta device."""

        payload: torch.Tensor
        place: torch.device
        known: Known

        @staticmethod
        def make(meta: Meta, device: torch.device, known: Known) -> "Absent":
            payload = torch.empty(meta.shape, dtype=meta.dtype, device="meta")
            return Absent.of(payload, device, known)

        @staticmethod
        def of(payload: torch.Tensor, device: torch.device, known: Known) -> "Absent":
            made = torch.Tensor._make_wrapper_subclass(
                Absent,
                payload.shape,
                strides=payload.stride(),
                dtype=payload.dtype,
                device=device,
            )
            made.payload, made.place, made.known = payload, device, known
            return made

        @classmethod
        def __torch_dispatch__(  # type: ignore[override]
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            raise _looked_at(str(function))

        def __repr__(self, **others: Any) -> str:  # type: ignore[override]
            return f"absent {tuple(self.payload.shape)} {self.payload.dtype}"

        @classmethod
        def __torch_function__(
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return _compute(cls, function, args, kwargs or {})

    return Absent


def _compute(kind: Any, function: Any, args: Any, kwargs: Any) -> Any:
    """`function` on tensors some of which are of the class `kind`, as far as shapes go."""
    import torch
    from torch.utils._pytree import tree_map_only

    some = _of_kind(kind, (args, kwargs))
    args, kwargs = tree_map_only(kind, lambda t: t.known.get(t), (args, kwargs))
    left = _of_kind(kind, (args, kwargs))
    if not left:
        return function(*args, **kwargs)
    device, known = some[0].place, some[0].known
    name = getattr(function, "__name__", "")
    if name == "__get__" and function.__self__.__name__ not in TENSOR_PROPERTIES:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)
    if name in OF_SHAPE or (name in LIKE_ANOTHER and not isinstance(args[0], kind)):
        args, kwargs = tree_map_only(kind, _stand_in, (args, kwargs))
        return function(*args, **kwargs)
    _refuse_writing(name, args, kind)
    if name in ("cpu", "cuda", "contiguous", "__deepcopy__", "detach", "requires_grad_"):
        return args[0]
    sources = {id(t.payload): t for t in left}
    args, kwargs = _on_meta(kind, args, kwargs)
    try:
        with torch._C.DisableTorchFunctionSubclass():
            found = function(*args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        raise _looked_at(name) from error
    return tree_map_only(
        torch.Tensor,
        lambda t: sources[id(t)] if id(t) in sources else kind.of(t, device, known),
        found,
    )


def _of_kind(kind: Any, values: Any) -> list[Any]:
    return [leaf for leaf in tensor_leaves(values) if isinstance(leaf, kind)]


def _stand_in(tensor: Any) -> Any:
    """A tensor of the same shape, of one entry in memory."""
    import torch

    one = torch.zeros((), dtype=tensor.payload.dtype, device=tensor.place)
    return one.expand(tensor.payload.shape)


def _on_meta(kind: Any, args: Any, kwargs: Any) -> Any:
    """The arguments with all tensors, and all devices named, on torch's meta device."""
    import torch
    from torch.utils._pytree import tree_map_only

    def moved(tensor: Any) -> Any:
        if isinstance(tensor, kind):
            return tensor.payload
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    args, kwargs = tree_map_only(torch.Tensor, moved, (args, kwargs))
    args, kwargs = tree_map_only(torch.device, lambda _: torch.device("meta"), (args, kwargs))
    if "device" in kwargs:
        kwargs["device"] = "meta"
    return args, kwargs


def _refuse_writing(name: str, args: Any, kind: Any) -> None:
    in_place = name in ("__setitem__", "copy_") or (name.endswith("_") and name[-2:] != "__")
    if in_place and not isinstance(args[0], kind):
        raise SpecError(
            "layout.pipeline",
            f"the model writes values of another stage into a tensor ({name})",
            "a tensor of another stage is known by its shape alone (axes/stages/absent.py)",
            "return the sum instead of writing it in place, or use pipeline=1",
        )


def _looked_at(name: str) -> SpecError:
    return SpecError(
        "layout.pipeline",
        f"the model looks at the values of a tensor of another stage ({name})",
        "between blocks a tensor of another stage is known by its shape (axes/stages/absent.py)",
        "move what decides by values into a block, or use pipeline=1",
    )


def emptied(
    module: "nn.Module", forward: Callable[..., Any], device: "torch.device", known: Known
) -> "nn.Module":
    """`module` without its tensors and hooks, with `forward` in place of its own.

    What the rest of the model reads off it, such as its sizes or whether it has a bias, stays.
    """
    made = _without_tensors(module, device, known)
    made.forward = forward
    made.__dict__[ABSENT] = True
    return made


def _without_tensors(module: "nn.Module", device: "torch.device", known: Known) -> "nn.Module":
    import torch

    def meta(tensor: "Tensor") -> "Tensor":
        return absent(Meta(tuple(tensor.shape), tensor.dtype), device, known)

    made = shallow(module)
    for name, value in list(made.__dict__.items()):
        if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
            del made.__dict__[name]  # such as an LSTM's list of its own weights
    for hooks in HOOKS:
        made.__dict__[hooks].clear()
    for tensors in (made._parameters, made._buffers):
        for name, tensor in list(tensors.items()):
            if tensor is not None:
                del tensors[name]
                made.__dict__[name] = meta(tensor)
    for name, child in made._modules.items():
        if child is not None:
            made._modules[name] = _without_tensors(child, device, known)
    return made


def shallow(module: "nn.Module") -> "nn.Module":
    """Another module of the same class, with tables of its own that hold the same entries."""
    made = module.__class__.__new__(module.__class__)
    made.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules", *HOOKS):
        made.__dict__[name] = type(module.__dict__[name])(module.__dict__[name])
    return made


def tensor_leaves(values: Any) -> "Iterator[Tensor]":
    """The tensors among `values`, in torch's order of leaves."""
    import torch
    from torch.utils._pytree import tree_leaves

    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))
