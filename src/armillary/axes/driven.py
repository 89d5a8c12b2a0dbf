"""A model that a pipeline drives: all micro batches of a step, in the order of a schedule."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from armillary.axes.absent import Meta, tensor_leaves
from armillary.axes.balance import Stages
from armillary.axes.stages import Outputs, Part
from armillary.spec import SpecError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

COPIES = "_armillary_copies"
PLAIN = (bool, int, float, str, type(None))
FEW = {"1f1b": "gpipe", "dualpipev": "zbv"}
UNEVEN = {"interleaved_1f1b": "looped_bfs", "interleaved_zero_bubble": "looped_bfs"}
CLASSES = {
    "1f1b": "Schedule1F1B",
    "gpipe": "ScheduleGPipe",
    "interleaved_1f1b": "ScheduleInterleaved1F1B",
    "looped_bfs": "ScheduleLoopedBFS",
    "interleaved_zero_bubble": "ScheduleInterleavedZeroBubble",
    "zbv": "ScheduleZBVZeroBubble",
    "dualpipev": "ScheduleDualPipeV",
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """A micro batch as the model takes it, and in which state of torch it is called."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seed: int
    random_state: Any
    autocast: "tuple[bool, torch.dtype] | None"


@dataclass(slots=True)
class Shapes:
    """What inputs of one shape make of a stage: what comes in, what goes out, what is absent."""

    taken: tuple[Meta, ...] = ()
    handed: tuple[Meta, ...] = ()
    outputs: Outputs = field(default_factory=dict)


class _CapturedError(Exception):
    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.args_, self.kwargs_ = args, kwargs


class _StandIn:
    """What a loss calls in place of the model: it may call it, and read off plain numbers."""

    def __init__(self, module: "nn.Module", call: Callable[..., Any]) -> None:
        self._module, self._call = module, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, PLAIN):
            return value
        raise SpecError(
            "recipe.loss",
            f"reads model.{name}",
            "under a pipeline no rank has the whole model; a loss calls it (axes/driven.py)",
            "compute it in the model's forward, or use pipeline=1",
        )


class Driven:
    """The stages of one rank, and what makes them one model with those of the others."""

    def __init__(
        self,
        module: "nn.Module",
        parts: Sequence[Part],
        stages: Stages,
        schedule: str,
        shared: dict[str, list[int]],
        group: Any,
        device: "torch.device",
        recomputes: bool,
    ) -> None:
        import torch.distributed as dist

        self.module, self.parts, self.stages, self.schedule = module, parts, stages, schedule
        self.shared, self.group, self.device = shared, group, device
        self.recomputes = recomputes  # a block is computed again once, for all its gradients
        self.rank = dist.get_rank(group)
        self.last_rank = stages.ranks[-1]
        self.known: dict[Any, dict[int, Shapes]] = {}
        self.schedules: dict[int, Any] = {}
        self.losses: Sequence[Callable[[Any], Tensor]] = ()
        self.was_training: bool | None = None

    # ---------------------------------------------------------------------------- training
    def forward_backward(
        self, losses: "Sequence[Callable[[nn.Module], Tensor]]", collect: "Callable[[], Tensor]"
    ) -> "Tensor":
        """See `door.DrivesSteps`; every rank of the pipeline gets the result."""
        self._follow_mode()
        inputs = [self._capture(loss) for loss in losses]
        self._learn_shapes(inputs)
        shapes = [self.known[self._key(one)] for one in inputs]
        self.losses = losses
        schedule, held = self._schedule(len(inputs))
        for stage in held:
            stage.expect(inputs, [found[stage.stage_index] for found in shapes])
        empty: list[Any] = [() for _ in inputs]
        schedule._step_microbatches(
            empty, [{} for _ in inputs], [*range(len(inputs))], None, return_outputs=False
        )
        self.losses = ()
        self._add_up_copies()
        return self._from_last(collect())

    def _capture(self, loss: Callable[[Any], Any]) -> Inputs:
        import torch

        def take(*args: Any, **kwargs: Any) -> Any:
            captured = _CapturedError(args, kwargs)
            captured.inputs = self._inputs(args, kwargs)  # type: ignore[attr-defined]
            raise captured

        try:
            with torch.no_grad():
                loss(_StandIn(self.module, take))
        except _CapturedError as captured:
            found: Inputs = captured.inputs  # type: ignore[attr-defined]
            return found
        raise SpecError(
            "recipe.loss",
            "does not call the model",
            "the loss of a batch is computed from model(...) (axes/driven.py)",
            "call the model in the loss",
        )

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        import torch

        kind = self.device.type
        autocast = torch.is_autocast_enabled(kind)
        return Inputs(
            args=args,
            kwargs=kwargs,
            seed=torch.initial_seed(),
            random_state=_random_state(self.device),
            autocast=(autocast, torch.get_autocast_dtype(kind)) if autocast else None,
        )

    def loss(self, index: int) -> "Tensor":
        """The loss of micro batch `index` on what the last stage has just computed."""
        result = self.parts[-1].result
        self.parts[-1].result = None
        stand_in: Any = _StandIn(self.module, lambda *args, **kwargs: result)
        return self.losses[index](stand_in)

    def _schedule(self, num_micro_batches: int) -> tuple[Any, list[Any]]:
        """torch's schedule for so many micro batches, and the stages it runs."""
        if num_micro_batches not in self.schedules:
            from torch.distributed import pipelining
            from torch.distributed.pipelining import schedules

            from armillary.axes.staged import staged_class

            held = [
                staged_class()(self, part, self.stages, self.device, self.group)
                for part in self.parts
            ]
            name = self._fitting(num_micro_batches)
            kind: Any = getattr(schedules, CLASSES[name], getattr(pipelining, CLASSES[name]))
            if issubclass(kind, schedules.PipelineScheduleMulti):
                self._stay_gathered()
            several: Any = held if issubclass(kind, schedules.PipelineScheduleMulti) else held[0]
            made = kind(
                several, num_micro_batches, loss_fn=lambda _, i: self.loss(i), scale_grads=False
            )
            self.schedules[num_micro_batches] = made, held
        found: tuple[Any, list[Any]] = self.schedules[num_micro_batches]
        return found

    def _stay_gathered(self) -> None:
        """Have FSDP leave parameters gathered between forward and backward.

        These schedules gather and release a stage themselves, and where they compute gradients of
        weights apart, torch looks for them in the gathered parameters.
        """
        from torch.distributed._composable.replicate_with_fsdp import ReplicateModule
        from torch.distributed.fsdp import FSDPModule

        for part in self.parts:
            for module in part.module.modules():
                if isinstance(module, FSDPModule) and not isinstance(module, ReplicateModule):
                    module.set_reshard_after_forward(False, recurse=False)

    def _fitting(self, num_micro_batches: int) -> str:
        """The schedule, or the like that takes so few or such a number of micro batches."""
        if num_micro_batches < self.stages.num_stages and self.schedule in FEW:
            return FEW[self.schedule]
        rounds = max(1, num_micro_batches // self.group.size())
        if num_micro_batches % rounds and self.schedule in UNEVEN:
            return UNEVEN[self.schedule]
        return self.schedule

    @contextlib.contextmanager
    def state_of(self, part: Part, inputs: Inputs) -> Iterator[None]:
        """Random numbers and autocast of a stage's forward: the first's are the serial ones."""
        import torch

        if part.index == 0:
            _set_random_state(self.device, inputs.random_state)
        else:
            torch.manual_seed((inputs.seed * 1_000_003 + part.index) % 2**63)
        with contextlib.ExitStack() as stack:
            if inputs.autocast is not None:
                enabled, dtype = inputs.autocast
                stack.enter_context(torch.autocast(self.device.type, dtype, enabled))
            yield

    # -------------------------------------------------------------------------- evaluation
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, on every rank of the pipeline, without gradients."""
        import torch

        if torch.is_grad_enabled():
            raise SpecError(
                "layout.pipeline",
                "the model is called outside of a step, with gradients",
                "a pipeline runs forward and backward together (axes/driven.py)",
                "call it under torch.no_grad(), or train with `armillary train`",
            )
        self._follow_mode()
        self._pass_through(self._inputs(args, kwargs))
        return self._result_of_all()

    def _learn_shapes(self, inputs: Sequence[Inputs]) -> None:
        """Pass inputs of a shape that is new through all stages, once, to see what they make.

        All ranks of the mesh do so if one must: what runs in a stage may be theirs together.
        """
        import torch
        import torch.distributed as dist

        news = {self._key(one): i for i, one in reversed([*enumerate(inputs)])}
        first = [i for key, i in news.items() if key not in self.known]
        is_new = torch.zeros(len(inputs), dtype=torch.int32, device=self.device)
        is_new[first] = 1
        if dist.get_world_size() > self.group.size():
            dist.all_reduce(is_new, op=dist.ReduceOp.MAX)
        if not is_new.any():
            return
        devices = [] if self.device.type == "cpu" else [self.device]
        buffers = [(b, b.clone()) for part in self.parts for b in part.module.buffers()]
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=self.device.type):
            for i in is_new.nonzero().flatten().tolist():
                self._pass_through(inputs[i])
        for buffer, before in buffers:
            buffer.copy_(before)

    def _key(self, inputs: Inputs) -> Any:
        from torch.utils._pytree import tree_flatten

        leaves, spec = tree_flatten((inputs.args, inputs.kwargs))
        return (
            str(spec),
            tuple((tuple(x.shape), x.dtype) if hasattr(x, "dtype") else repr(x) for x in leaves),
            self.module.training,
            inputs.autocast,
        )

    def _pass_through(self, inputs: Inputs) -> None:
        """Run the stages of all ranks one after another, and note shapes that are new."""
        key = self._key(inputs)
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

    def _result_of_all(self) -> Any:
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

    # ------------------------------------------------------------------------- what is shared
    def _from_last(self, values: "Tensor") -> "Tensor":
        import torch.distributed as dist

        on_device = values.to(self.device).clone()
        dist.broadcast(on_device, group=self.group, group_src=self.last_rank)
        return on_device.to(values.device)

    def _add_up_copies(self) -> None:
        """Add the gradients of parameters that several ranks hold, so that copies stay equal.

        The first holder adds in the order of the ranks and sends the sum to all.
        """
        import torch
        import torch.distributed as dist

        for path in sorted(self.shared):
            ranks = self.shared[path]
            if self.rank not in ranks:
                continue
            parameter = self.module.get_parameter(path)
            setattr(parameter, COPIES, len(ranks))
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradient = _local(parameter.grad)
            if self.rank != ranks[0]:
                dist.send(gradient.contiguous(), group=self.group, group_dst=ranks[0])
                total = torch.empty_like(gradient, memory_format=torch.contiguous_format)
                dist.recv(total, group=self.group, group_src=ranks[0])
                gradient.copy_(total)
                continue
            for other in ranks[1:]:
                theirs = torch.empty_like(gradient, memory_format=torch.contiguous_format)
                dist.recv(theirs, group=self.group, group_src=other)
                gradient += theirs
            for other in ranks[1:]:
                dist.send(gradient.contiguous(), group=self.group, group_dst=other)

    def _follow_mode(self) -> None:
        """Set the stages to train or evaluate as their parts of the model are set."""
        if self.was_training == self.module.training:
            return
        self.was_training = self.module.training
        modes = {path: module.training for path, module in self.module.named_modules()}
        for part in self.parts:
            for path, module in part.module.named_modules():
                module.training = modes.get(path, self.module.training)


def _meta(tensor: "Tensor") -> Meta:
    return Meta(tuple(tensor.shape), tensor.dtype)


def _local(gradient: "Tensor") -> "Tensor":
    """The part of a gradient that this rank holds."""
    local: Tensor = getattr(gradient, "_local_tensor", gradient)
    return local


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
