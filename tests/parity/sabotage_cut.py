"""Faults of the axis that cuts the module: stages of a pipeline."""

from contextlib import AbstractContextManager
from typing import Any

import torch.distributed as dist

from armillary.axes.stages.driven import Driven
from armillary.axes.stages.line import Line
from armillary.step import build
from tests.parity.sabotage import fault, replaced

Context = AbstractContextManager[Any]


@fault("sabotage_decoder", "pipeline=2", "pipeline", "copies differ along pipeline", tied="True")
def tied_gradient_lost() -> Context:
    """An embedding on the first stage and a head on the last, tied, keep their own gradients."""
    return replaced(Driven, "_add_up_copies", lambda real: lambda self: None)


@fault(
    "sabotage_decoder", "pipeline=2", "pipeline",
    "4 times the right one: a factor of the number of micro batches",
    thread="pytorch/torchtitan#2972, deepspeedai/DeepSpeed#7773",
)  # fmt: skip
def micro_batches_summed_not_averaged() -> Context:
    """The losses of micro batches are added, each as if it were the whole step."""
    return replaced(
        Driven, "loss", lambda real: lambda self, index: real(self, index) * len(self.losses)
    )


@fault(
    "sabotage_decoder",
    "pipeline=2",
    "pipeline",
    kind="loss",
    thread="NVIDIA/Megatron-LM#7452 item 12",
)
def layers_of_another_stage() -> Context:
    """The last stage loads the layers of the first; every name and shape fits."""

    def make(real: Any) -> Any:
        def fill(module: Any, *others: Any) -> None:
            real(module, *others)
            held = {name: p.data.clone() for name, p in module.named_parameters()}
            first = [held]
            dist.broadcast_object_list(first, 0)
            for name, parameter in module.named_parameters():
                if name.startswith("blocks.1.") and dist.get_rank():
                    parameter.data.copy_(first[0][name.replace("blocks.1.", "blocks.0.")])

        return fill

    return replaced(build, "fill", make)


@fault("sabotage_decoder", "pipeline=2", "pipeline", "zero: the contribution is lost")
def gradient_lost_at_the_boundary() -> Context:
    """What comes in from the stage before is detached, so that no gradient goes back."""

    def make(real: Any) -> Any:
        def call(self: Any, part: Any, received: Any, inputs: Any, shapes: Any) -> Any:
            cut = [t.detach() + 0.0 * t for t in received]
            return real(self, part, cut, inputs, shapes)

        return call

    return replaced(Line, "call", make)


@fault("sabotage_decoder", "pipeline=2", "pipeline")
def targets_of_another_micro_batch() -> Context:
    """The last stage takes the targets in another order than the first stage its inputs."""
    return replaced(
        Driven,
        "loss",
        lambda real: lambda self, index: real(self, {0: 1, 1: 0}.get(index, index)),
    )
