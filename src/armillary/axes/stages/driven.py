"""A model that a pipeline drives: all micro batches of a step, in the order of a schedule."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from armillary.axes.stages.balance import Stages
from armillary.axes.stages.fitting import fitting
from armillary.axes.stages.line import Inputs, Line
from armillary.axes.stages.stage import Part
from armillary.spec import SpecError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

COPIES = "_armillary_copies"
"""On a parameter: how many ranks of the pipeline hold it, where it is more than one."""
PLAIN = (bool, int, float, str, type(None))
CLASSES = {
    "1f1b": "Schedule1F1B",
    "gpipe": "ScheduleGPipe",
    "interleaved_1f1b": "ScheduleInterleaved1F1B",
    "looped_bfs": "ScheduleLoopedBFS",
    "interleaved_zero_bubble": "ScheduleInterleavedZeroBubble",
    "zbv": "ScheduleZBVZeroBubble",
    "dualpipev": "ScheduleDualPipeV",
}


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
            "under a pipeline no rank has the whole model; a loss calls it (axes/stages/driven.py)",
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
        self.module, self.parts, self.stages, self.schedule = module, parts, stages, schedule
        self.shared, self.group, self.device = shared, group, device
        self.recomputes = recomputes  # a block is computed again once, for all its gradients
        self.line = Line(module, parts, stages, group, device)
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
        self.learn_shapes(inputs)
        shapes = [self.line.known[self.line.key(one)] for one in inputs]
        self.losses = losses
        schedule, held = self.schedule_of(len(inputs))
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
            captured.inputs = self.line.inputs(args, kwargs)  # type: ignore[attr-defined]
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
            "the loss of a batch is computed from model(...) (axes/stages/driven.py)",
            "call the model in the loss",
        )

    def loss(self, index: int) -> "Tensor":
        """The loss of micro batch `index` on what the last stage has just computed."""
        result = self.parts[-1].result
        self.parts[-1].result = None
        stand_in: Any = _StandIn(self.module, lambda *args, **kwargs: result)
        return self.losses[index](stand_in)

    def schedule_of(self, num_micro_batches: int) -> tuple[Any, list[Any]]:
        """torch's schedule for so many micro batches, and the stages it runs."""
        if num_micro_batches not in self.schedules:
            from torch.distributed import pipelining
            from torch.distributed.pipelining import schedules

            from armillary.axes.stages.staged import staged_class

            held = [
                staged_class()(self, part, self.stages, self.device, self.group)
                for part in self.parts
            ]
            name = self.fitting(num_micro_batches)
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

    def fitting(self, num_micro_batches: int) -> str:
        """The schedule, or the like that takes so few or such a number of micro batches."""
        degree = self.group.size()
        per_rank = self.stages.num_stages // degree
        return fitting(self.schedule, degree, per_rank, num_micro_batches)

    # -------------------------------------------------------------------------- evaluation
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, on every rank of the pipeline, without gradients."""
        import torch

        if torch.is_grad_enabled():
            raise SpecError(
                "layout.pipeline",
                "the model is called outside of a step, with gradients",
                "a pipeline runs forward and backward together (axes/stages/driven.py)",
                "call it under torch.no_grad(), or train with `armillary train`",
            )
        self._follow_mode()
        self.line.pass_through(self.line.inputs(args, kwargs))
        return self.line.result_of_all()

    def learn_shapes(self, inputs: Sequence[Inputs]) -> None:
        """Pass inputs of a shape that is new through all stages, once, to see what they make.

        All ranks of the mesh do so if one must: what runs in a stage may be theirs together.
        """
        import torch
        import torch.distributed as dist

        news = {self.line.key(one): i for i, one in reversed([*enumerate(inputs)])}
        first = [i for key, i in news.items() if key not in self.line.known]
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
                self.line.pass_through(replace(inputs[i], counts=False))
        for buffer, before in buffers:
            buffer.copy_(before)

    # ------------------------------------------------------------------------- what is shared
    def _from_last(self, values: "Tensor") -> "Tensor":
        import torch.distributed as dist

        on_device = values.to(self.device).clone()
        dist.broadcast(on_device, group=self.group, group_src=self.line.last_rank)
        return on_device.to(values.device)

    def _add_up_copies(self) -> None:
        """Add the gradients of parameters that several ranks hold, so that copies stay equal.

        The first holder adds in the order of the ranks and sends the sum to all.
        """
        import torch
        import torch.distributed as dist

        for path in sorted(self.shared):
            ranks = self.shared[path]
            if self.line.rank not in ranks:
                continue
            parameter = self.module.get_parameter(path)
            setattr(parameter, COPIES, len(ranks))
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradient = _local(parameter.grad)
            if self.line.rank != ranks[0]:
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


def _local(gradient: "Tensor") -> "Tensor":
    """The part of a gradient that this rank holds."""
    local: Tensor = getattr(gradient, "_local_tensor", gradient)
    return local
