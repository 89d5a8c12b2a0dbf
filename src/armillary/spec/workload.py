"""What one step of a plan asks of its ranks and links: what `rehearse` plays on a machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from armillary.spec.document import Document


@dataclass(frozen=True, kw_only=True, slots=True)
class StageWork(Document):
    """Seconds that one stage computes for one micro batch, without messages and without waiting.

    `backward_input_s` makes the gradients of activations, `backward_weight_s` those of parameters,
    `again_s` is what recomputing adds to the former. The `_launch_s` are what its host needs to
    launch a forward and a backward pass, beside which the device computes. `num_stages` successive
    stages are like this one.
    """

    what: ClassVar[str] = "stage"

    forward_s: float
    backward_input_s: float
    backward_weight_s: float
    again_s: float = 0.0
    forward_launch_s: float = 0.0
    backward_launch_s: float = 0.0
    num_blocks: float = 1.0
    num_stages: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Message(Document):
    """One kind of message of a step, as the traffic of its axis tells it.

    `collective` is torch's name, `group` the axes whose ranks take part, `bytes` the size of the
    whole tensor as sent. A rank sends it `per_step` times a step; one that `crosses_stages` is
    counted for all ranks of a pipeline together. It `carries` activations, parameters, gradients
    or counts, and may be sent `behind` the forward or the backward pass of `rounds` micro batches,
    of which it is `hidden` beside this share; a message of activations is inside the pass, and
    `hidden` is the share of its own seconds.
    """

    what: ClassVar[str] = "message"

    axis: str
    collective: str
    group: tuple[str, ...]
    carries: str
    behind: str
    bytes: float
    per_step: float
    rounds: float = 1.0
    hidden: float = 0.0
    crosses_stages: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload(Document):
    """One optimiser step as its layout cuts it: passes of every stage, and messages.

    `degrees` are those above 1 by axis, the outermost of the mesh first; `stages_axis` is the one
    whose ranks hold other modules ("" without), `batch_axes` are those whose ranks take other
    samples. `update_s` is the optimiser's pass on a rank, `step_s` what a step costs at any size,
    `micro_batch_s` what a micro batch does, `message_launch_s` the host's time a message inside a
    pass. `slowdown` is the share of the device that messages take while they run beside a pass,
    `exposes_sends` the share of a message between stages that the sender waits for, and `spread`
    the relative standard deviation of a replica's time.
    """

    what: ClassVar[str] = "workload"

    degrees: Mapping[str, int] = field(default_factory=dict)
    stages_axis: str = ""
    batch_axes: tuple[str, ...] = ()
    schedule: str = "1f1b"
    stages_per_rank: int = 1
    num_micro_batches: int
    stages: tuple[StageWork, ...]
    messages: tuple[Message, ...] = ()
    update_s: float = 0.0
    step_s: float = 0.0
    micro_batch_s: float = 0.0
    message_launch_s: float = 0.0
    slowdown: float = 0.0
    exposes_sends: float = 0.0
    spread: float = 0.0
