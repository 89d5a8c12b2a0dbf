"""The stages of a pipeline in a line: what each is given, and a pass through all of them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from armillary.axes.batch.ranks import counts_here, note_samples
from armillary.axes.stages.absent import Meta, tensor_leaves
from armillary.axes.stages.balance import Stages
from armillary.axes.stages.stage import Outputs, Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Inputs:
    """A micro batch as the model takes it, and in which state of torch it is called.

    `counts` is false where its samples must enter no mean and no count (`batch_ranks`).
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seed: int
    random_state: Any
    autocast: "tuple[bool, torch.dtype] | None"
    counts: bool


@dataclass(slots=True)
class Shapes:
    """What inputs of one shape make of a stage: what comes in, what goes out, what is absent."""

    taken: tuple[Meta, ...] = ()
    handed: tuple[Meta, ...] = ()
    outputs: Outputs = field(default_factory=dict)


class Line:
    """The stages of one rank among those of the others, and what is known of shapes."""

    def __init__(
        self,
        module: "nn.Module",
        parts: Sequence[Part],
        stages: Stages,
        group: Any,
        device: "torch.device",
    ) -> None:
        import torch.distributed as dist

        self.module, self.parts, self.stages = module, parts, stages
        self.group, self.device = group, device
        self.rank = dist.get_rank(group)
        self.last_rank = stages.ranks[-1]
        self.known: dict[Any, dict[int, Shapes]] = {}

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """What the model is called with, in torch's present state."""
        import torch

        kind = self.device.type
        autocast = torch.is_autocast_enabled(kind)
        return Inputs(
            args=args,
            kwargs=kwargs,
            seed=torch.initial_seed(),
            random_state=_random_state(self.device),
            autocast=(autocast, torch.get_autocast_dtype(kind)) if autocast else None,
            counts=counts_here(),
        )

    def key(self, inputs: Inputs) -> Any:
        """What the shapes in the stages depend on."""
        from torch.utils._pytree import tree_flatten

        leaves, spec = tree_flatten((inputs.args, inputs.kwargs))
        return (
            str(spec),
            tuple((tuple(x.shape), x.dtype) if hasattr(x, "dtype") else repr(x) for x in leaves),
            self.module.training,
            inputs.autocast,
        )

    def pass_through(self, inputs: Inputs) -> None:
        """Run the stages of all ranks one after another, and note shapes that are new."""
        key = self.key(inputs)
        is_new = key not in self.known
        shapes = self.known.setdefault(key, {part.index: Shapes() for part in self.parts})
        local: tuple[Any, ...] = ()
        for part in self.parts:
            found = shapes[part.index]
            received = self._receive(part, found, local, is_new)
            if is_new:
                part.records = {path: [*calls] for path, calls in found.outputs.items()}
            with self.state_of(part, inputs):
                local = self.call(part, received, inputs, found)
            if is_new:
                found.handed = () if part.is_last else tuple(_meta(t) for t in local)
                self._tell(part, found, part.records or {}, shapes)
                part.records = None
            self._send(part, local)

    def call(
        self, part: Part, received: Sequence[Any], inputs: Inputs, shapes: Shapes
    ) -> tuple[Any, ...]:
        """What the stage `part` hands out for the tensors that came in."""
        part.outputs = shapes.outputs
        if part.index == 0:
            handed: tuple[Any, ...] = part.module(*inputs.args, **inputs.kwargs)
        else:
            handed = part.module(*received, inputs=(inputs.args, inputs.kwargs))
        return handed if part.is_last else tuple(t.contiguous() for t in handed)

    def _receive(
        self, part: Part, found: Shapes, local: tuple[Any, ...], is_new: bool
    ) -> tuple[Any, ...]:
        import torch
        import torch.distributed as dist

        if part.index == 0:
            return ()
        before = self.stages.ranks[part.index - 1]
        if before == self.rank:
            return local
        if is_new:
            told: list[Any] = [None]
            dist.recv_object_list(told, group=self.group, group_src=before, device=self.device)
            found.taken, found.outputs = told[0]
        received = tuple(
            torch.empty(meta.shape, dtype=meta.dtype, device=self.device) for meta in found.taken
        )
        for tensor in received:
            dist.recv(tensor, group=self.group, group_src=before)
        return received

    def _tell(self, part: Part, found: Shapes, records: Outputs, shapes: dict[int, Shapes]) -> None:
        import torch.distributed as dist

        if part.is_last:
            return
        after = self.stages.ranks[part.index + 1]
        if after == self.rank:
            shapes[part.index + 1].taken = found.handed
            shapes[part.index + 1].outputs = records
        else:
            told = [(found.handed, records)]
            dist.send_object_list(told, group=self.group, group_dst=after, device=self.device)

    def _send(self, part: Part, tensors: tuple[Any, ...]) -> None:
        import torch.distributed as dist

        if part.is_last or self.stages.ranks[part.index + 1] == self.rank:
            return
        for tensor in tensors:
            dist.send(tensor, group=self.group, group_dst=self.stages.ranks[part.index + 1])

    def result_of_all(self) -> Any:
        """The last stage's result on every rank: its structure as an object, then its tensors."""
        import torch
        import torch.distributed as dist
        from torch.distributed.tensor import DTensor
        from torch.utils._pytree import tree_map_only

        told: list[Any] = [None]
        result = None
        if self.rank == self.last_rank:
            result, self.parts[-1].result = self.parts[-1].result, None
            result = tree_map_only(DTensor, lambda t: t.full_tensor(), result)
            result = tree_map_only(torch.Tensor, lambda t: t.contiguous(), result)
            told = [tree_map_only(torch.Tensor, _meta, result)]
        dist.broadcast_object_list(
            told, group=self.group, group_src=self.last_rank, device=self.device
        )
        if result is None:
            result = tree_map_only(
                Meta, lambda m: torch.empty(m.shape, dtype=m.dtype, device=self.device), told[0]
            )
        for tensor in tensor_leaves(result):
            dist.broadcast(tensor, group=self.group, group_src=self.last_rank)
        return result

    @contextlib.contextmanager
    def state_of(self, part: Part, inputs: Inputs) -> Iterator[None]:
        """Random numbers and autocast of a stage's forward: the first's are the serial ones."""
        import torch

        note_samples(int(inputs.counts))
        if part.index == 0:
            _set_random_state(self.device, inputs.random_state)
        else:
            torch.manual_seed((inputs.seed * 1_000_003 + part.index) % 2**63)
        with contextlib.ExitStack() as stack:
            if inputs.autocast is not None:
                enabled, dtype = inputs.autocast
                stack.enter_context(torch.autocast(self.device.type, dtype, enabled))
            yield


def _meta(tensor: "Tensor") -> Meta:
    return Meta(tuple(tensor.shape), tensor.dtype)


def _random_state(device: "torch.device") -> Any:
    import torch

    on_device = None
    if device.type != "cpu":
        on_device = torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), on_device


def _set_random_state(device: "torch.device", state: Any) -> None:
    import torch

    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], device)
