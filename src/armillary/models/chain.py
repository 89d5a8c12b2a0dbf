"""The chain of a model: its repeated blocks in the order of a call, and where it may be cut.

A call is watched, not traced: the model's own forward runs, so any Python is allowed in it. Region
k is what runs outside of the blocks after k of them, such as an embedding (region 0), a norm
between blocks, or a head (the last region). A cut before block k is sound if all that is used
behind it and depends on parameters before it is among the arguments of block k: these tensors
cross the cut, and everything else (masks, positions) can be computed again from the inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from armillary.models.watch import Call
from armillary.spec import Glue

RANDOM = ("rand", "bernoulli", "dropout", "normal", "multinomial", "uniform")
OF_SHAPE = (
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
    *("zeros_like", "ones_like", "full_like", "empty_like"),
)
"""Operations whose result does not depend on a tensor's values."""
LIKE_ANOTHER = ("to", "type_as", "expand_as", "view_as", "reshape_as")
"""Those whose result does not depend on the values of the second tensor."""
PRODUCTS = {
    *("linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "einsum"),
    *("addmm", "addbmm", "baddbmm", "addmv", "chain_matmul", "scaled_dot_product_attention"),
    *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"),
    "multi_head_attention_forward",
}
"""Functions that autocast has take 16 bits. Source: torch, "Automatic Mixed Precision package"."""
READS = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "equal", "is_nonzero")


def _attention_flops(query: Any, key: Any, value: Any, *others: Any, **more: Any) -> int:
    """Both products of an attention, of the whole square, from the shapes [B, N, T, D]."""
    *samples, length, size = query
    return int(2 * prod(samples) * length * key[-2] * (size + value[-1]))


ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""Fused attention that torch's counter leaves out, so that chains weigh alike on any device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """The blocks in order, what lies between them, what crosses a cut, and why there is no chain.

    The names are those of `ModelGraph`.
    """

    chain: tuple[str, ...] = ()
    crossings: tuple[tuple[int, ...], ...] = ()
    crossing_bytes: tuple[int, ...] = ()
    wide_crossings: tuple[tuple[int, ...], ...] = ()
    wide_bytes: tuple[int, ...] = ()
    chain_flops: tuple[int, ...] = ()
    glue: tuple[Glue, ...] = ()
    uncut: str = ""


def find_chain(
    module: nn.Module, blocks: Sequence[str], call: Call | None, num_samples: int
) -> Chain:
    """The chain that `call`, a forward pass of `num_samples` samples, shows of `blocks`.

    A recipe's module may name the blocks itself, by the path of their list in its attribute
    `chain`.
    """
    own = getattr(module, "chain", None)
    if isinstance(own, str):
        blocks = [f"{own}.{name}" for name, _ in module.get_submodule(own).named_children()]
    if call is None:
        return Chain(uncut="no call of the model was seen")
    if len(blocks) < 2:
        return Chain(
            uncut="it has no two blocks of one class in a ModuleList or Sequential that share no "
            "parameter with the rest"
        )
    watched = _watched(module, blocks, call, num_samples)
    found = watched.chain()
    if not found.chain:
        return found
    try:
        narrow = _watched(module, blocks, call, num_samples, narrows=True)
    except (
        RuntimeError,
        TypeError,
        ValueError,
    ):  # it mixes dtypes, and runs under no autocast either
        return found
    return replace(found, **watched.kept_wide(narrow, found))


def _watched(
    module: nn.Module, blocks: Sequence[str], call: Call, num_samples: int, narrows: bool = False
) -> "_Watch":
    watched = _Watch(module, blocks, num_samples, narrows)
    with watched.watching():
        call(module)
    return watched


@dataclass(slots=True, eq=False)
class _Seen:
    """Where a tensor came from: its region, and whether parameters or random numbers made it."""

    tensor: torch.Tensor  # held, so that its id stays its own
    region: int
    is_random: bool


@dataclass(slots=True)
class _Faults:
    """Cuts that are not sound, each with the first reason found."""

    of_cut: dict[int, str] = field(default_factory=dict)
    of_all: str = ""

    def forbid(self, cuts: Iterator[int] | range, why: str) -> None:
        for cut in cuts:
            self.of_cut.setdefault(cut, why)


class _Watch(TorchFunctionMode):
    """Watches one call: regions, what parameters each uses, and which tensors cross.

    One that `narrows` has products take 16 bits, as autocast does, on any device.
    """

    def __init__(
        self, module: nn.Module, blocks: Sequence[str], num_samples: int, narrows: bool = False
    ) -> None:
        super().__init__()
        self.narrows = narrows
        self.module, self.blocks, self.num_samples = module, set(blocks), num_samples
        self.names = {p: n for n, p in reversed([*module.named_parameters(remove_duplicate=False)])}
        self.region, self.depth, self.num_calls = 0, 1, 0  # depth 0: in the model, in no part
        self.order: list[str] = []
        self.arguments: list[set[int]] = []
        self.crossings: list[tuple[int, ...]] = []
        self.sizes: list[dict[int, int]] = []
        self.made: dict[int, _Seen] = {}
        self.uses: dict[nn.Parameter, set[int]] = {}
        self.marks: list[int] = []
        self.faults = _Faults()
        self.counter = FlopCounterMode(display=False, custom_mapping=ON_CPU)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on the model, its blocks and its other parts, as long as the context lasts."""
        was_training = self.module.training
        with ExitStack() as stack:
            for path, part, is_block in _units(self.module, self.blocks):
                enter = self._enter_block if is_block else self._enter_unit
                leave = self._leave_block if is_block else self._leave_unit
                before = _Hook(path, enter)
                stack.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
                after = part.register_forward_hook(_Hook(path, leave), always_call=True)
                stack.callback(after.remove)
            stack.callback(self.module.register_forward_pre_hook(self._enter_model).remove)
            stack.callback(self.module.register_forward_hook(self._leave_model).remove)
            stack.callback(self.module.train, was_training)
            self.module.eval()
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.random.fork_rng(devices=[]))
            if self.narrows:  # which modules of torch ask about, beside what is on a CPU
                stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            stack.enter_context(self.counter)
            stack.enter_context(self)
            yield

    # ------------------------------------------------------------------------- what is called
    def _enter_model(self, module: nn.Module, args: Any) -> None:
        self.num_calls += 1
        if self.num_calls > 1:
            return
        self.depth = 0
        self.marks.append(self.counter.get_total_flops())

    def _leave_model(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.num_calls > 1:
            return
        self._use(_tensors(output), "the model's output")
        self.marks.append(self.counter.get_total_flops())
        self.depth = 1  # what the loss computes is no part of the model

    def _enter_block(self, path: str, args: Any) -> None:
        if self.depth == 0:
            self.marks.append(self.counter.get_total_flops())
            leaves = _tensors(args)
            self._use(leaves, path, is_block=True)
            for leaf in leaves:
                if isinstance(leaf, nn.Parameter):
                    self.uses.setdefault(leaf, set()).add(self.region + 1)
            crossing = self._crossing(leaves)
            self.crossings.append(crossing)
            self.sizes.append({i: leaves[i].nbytes for i in crossing})
            self.arguments.append({id(leaf) for leaf in leaves})
            self.order.append(path)
        self.depth += 1

    def _leave_block(self, path: str, output: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.region += 1
            self._make(_tensors(output))

    def _enter_unit(self, path: str, args: Any) -> None:
        if self.depth == 0:
            self._use(_tensors(args), path)
            for parameter in self.module.get_submodule(path).parameters():
                self.uses.setdefault(parameter, set()).add(self.region)
        self.depth += 1

    def _leave_unit(self, path: str, output: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self._make(_tensors(output))

    def _crossing(self, leaves: list[torch.Tensor]) -> tuple[int, ...]:
        """Which of a block's tensors cannot be computed from the model's inputs, each once.

        That made last comes first: it is what the block before hands on.
        """
        first = {id(leaf): i for i, leaf in reversed([*enumerate(leaves)])}
        found = [i for key, i in first.items() if key in self.made]
        found = [i for i in found if not isinstance(leaves[i], nn.Parameter)]
        return tuple(sorted(found, key=lambda i: (-self.made[id(leaves[i])].region, i)))

    # ----------------------------------------------------------------------- what is computed
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, given = getattr(function, "__name__", ""), (args, kwargs or {})
        if self.narrows and name in PRODUCTS:
            given = tree_map_only(torch.Tensor, _narrowed, given)
        result = function(*given[0], **given[1])
        if self.depth == 0:
            self._note(name, _tensors((args, kwargs)), result)
        return result

    def _note(self, name: str, taken: list[torch.Tensor], result: Any) -> None:
        results = _tensors(result)
        taken = [] if name in OF_SHAPE else taken[:1] if name in LIKE_ANOTHER else taken
        is_tied = any(id(t) in self.made or isinstance(t, nn.Parameter) for t in taken)
        if name in READS and is_tied:
            self.faults.of_all = (
                f"its forward looks at the values of a hidden tensor between its blocks ({name})"
            )
        if not results and not name.startswith("__set"):
            return  # a shape, a dtype: known without the values
        for tensor in taken:
            if isinstance(tensor, nn.Parameter):
                self.uses.setdefault(tensor, set()).add(self.region)
        self._use(taken, name)
        is_random = any(word in name for word in RANDOM)
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if is_tied or is_random:
            changed = taken[:1] if in_place else []
            self._make([*results, *changed], is_random=is_random and not is_tied)
        elif any(self._is_random(t) for t in taken):
            self._make(results, is_random=True)

    def _is_random(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self.made and self.made[id(tensor)].is_random

    def _make(self, tensors: list[torch.Tensor], *, is_random: bool = False) -> None:
        for tensor in tensors:
            self.made[id(tensor)] = _Seen(tensor, self.region, is_random)

    def _use(self, tensors: list[torch.Tensor], what: str, *, is_block: bool = False) -> None:
        """Forbid the cuts over which one of `tensors` would not be known."""
        for tensor in tensors:
            seen = self.made.get(id(tensor))
            if seen is None or isinstance(tensor, nn.Parameter):
                continue
            between = range(seen.region, self.region)
            if seen.is_random:  # each stage would draw its own
                between = range(seen.region, self.region + is_block)
                self.faults.forbid(between, f"{what} takes random numbers drawn before a block")
                continue
            lost = [k for k in between if id(tensor) not in self.arguments[k]]
            where = f"after {self.order[seen.region - 1]}" if seen.region else "before the blocks"
            self.faults.forbid(
                iter(lost), f"{what} takes a tensor made {where} that the blocks do not hand on"
            )

    # -------------------------------------------------------------------------- what was found
    def chain(self) -> Chain:
        """The chain, or the reason why there is none."""
        why = self._why_none()
        if why:
            return Chain(uncut=why)
        faults = self.faults.of_cut
        crossings = [() if k in faults else c for k, c in enumerate(self.crossings)]
        if not any(crossings[1:]):
            reasons = [faults[k] for k in sorted(faults) if k]
            return Chain(uncut=reasons[0] if reasons else "no block takes what another hands on")
        spans = zip(self.marks[:-1], self.marks[1:], strict=True)
        return Chain(
            chain=tuple(self.order),
            crossings=((), *crossings[1:]),
            crossing_bytes=tuple(sum(s.values()) // self.num_samples for s in self.sizes),
            chain_flops=tuple((end - start) // self.num_samples for start, end in spans),
            glue=tuple(self._glue()),
        )

    def kept_wide(self, narrow: "_Watch", chain: Chain) -> dict[str, Any]:
        """Of what crosses the cuts of `chain`, that which is as wide in the `narrow` watch."""
        pairs = zip(chain.crossings, self.sizes, narrow.sizes, strict=True)
        wide = [
            {i: sizes[i] for i in crossing if others.get(i) == sizes[i]}
            for crossing, sizes, others in pairs
        ]
        return {
            "wide_crossings": tuple(tuple(found) for found in wide),
            "wide_bytes": tuple(sum(found.values()) // self.num_samples for found in wide),
        }

    def _why_none(self) -> str:
        if self.num_calls != 1:
            return f"the loss calls the model {self.num_calls} times"
        if self.faults.of_all:
            return self.faults.of_all
        missed = sorted(self.blocks - set(self.order))
        if missed:
            return f"{missed[0]} is not called as a module"
        twice = [path for path in self.order if self.order.count(path) > 1]
        return f"{twice[0]} is called {self.order.count(twice[0])} times" if twice else ""

    def _glue(self) -> Iterator[Glue]:
        """Every parameter outside the blocks, once, by its first name."""
        inside = {p for path in self.order for p in self.module.get_submodule(path).parameters()}
        for path, parameter in self.module.named_parameters():
            if parameter not in inside:
                regions = self.uses.get(parameter, {0})
                size = parameter.numel() * parameter.element_size()
                yield Glue(path=path, parameter_bytes=size, regions=tuple(sorted(regions)))


@dataclass(slots=True)
class _Hook:
    """A hook that knows the path of its module; of a call it hands on all that was taken."""

    path: str
    tell: Any

    def __call__(self, module: nn.Module, args: Any, other: Any) -> None:
        is_entry = self.tell.__name__.startswith("_enter")
        self.tell(self.path, (args, other) if is_entry else other)


def _units(
    module: nn.Module, blocks: set[str], prefix: str = ""
) -> Iterator[tuple[str, nn.Module, bool]]:
    """The blocks, and the largest modules with parameters that hold no block."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if path in blocks:
            yield path, child, True
        elif any(block.startswith(f"{path}.") for block in blocks):
            yield from _units(child, blocks, f"{path}.")
        elif any(True for _ in child.parameters()):
            yield path, child, False


def _narrowed(tensor: torch.Tensor) -> torch.Tensor:
    is_wide = tensor.dtype.is_floating_point and tensor.element_size() > 2
    return tensor.to(torch.bfloat16) if is_wide else tensor


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
