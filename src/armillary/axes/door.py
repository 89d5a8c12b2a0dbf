"""The doors of an axis, the same for all: what it admits, divides, sends, and how it is applied."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from armillary.spec import Layout, ModelGraph, Op, SpecError
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import DeviceMesh


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why an axis cannot serve some layouts: `refused` marks the rows, shape [num_layouts]."""

    refused: NDArray[np.bool_]
    reason: SpecError


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """What part of the whole one rank holds and computes, each of shape [num_layouts], 1 = all.

    The shares of several axes multiply.
    """

    parameters: NDArray[np.float64]
    gradients: NDArray[np.float64]
    optimizer_state: NDArray[np.float64]
    samples: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What part of an op one rank computes, each of shape [num_layouts], 1 = all.

    `rows`, `columns`, `inner` and `batch` are the sizes of a product (`spec.Op`), `parameters` what
    it holds of its parameters. Of an op that is no product the sizes' product counts. The parts of
    several axes multiply.
    """

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]
    inner: NDArray[np.float64]
    batch: NDArray[np.float64]
    parameters: NDArray[np.float64]


def part_of(layouts: Layouts, **sizes: NDArray[np.float64]) -> Part:
    """The part with some `sizes`, and all of the others."""
    whole = np.ones(layouts.num_layouts)
    named = dict.fromkeys(("rows", "columns", "inner", "batch", "parameters"), whole)
    return Part(**(named | sizes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """One kind of message that an axis sends in a step, by torch's name of the collective.

    `group` are the axes whose ranks take part. `bytes` is the size of the whole tensor before it is
    divided over the group, and `per_step` how often a rank sends it in an optimiser step, on
    average over the stages of a pipeline, both of shape [num_layouts]; a "send" is counted for all
    ranks of a pipeline together. Of a folded graph it is for the one block that `path` lies in,
    whatever `ModelGraph.times` says; what has no path is for all of them. `hidden_behind` is the
    phase it can overlap with. It `carries` "activations" or their gradients, "parameters" or
    "gradients" of them, whose dtypes may differ, or "counts", whose bytes are what they are in any
    precision. Activations that are `is_wide` stay as wide as parameters under autocast, which
    narrows what products take and put out. It is sent beside `rounds` of a step's micro batches,
    what is not inside a pass.
    """

    collective: str
    group: tuple[str, ...]
    bytes: NDArray[np.float64]
    per_step: NDArray[np.float64]
    hidden_behind: str
    path: str
    carries: str = "activations"
    is_wide: bool = False
    rounds: Any = 1.0


class Axis(Protocol):
    """One axis of parallelism. A file in this room that defines `AXIS` is found by discovery.

    `order` is its place in a mesh where nobody says otherwise, low for outside.
    `options` are the words that a layout may give after the axis' name and a dot, each with its
    choices, the first of them the default. `splits_batch`: its ranks take other samples.
    `splits_module`: its ranks hold other modules, and it is applied before the others.
    `shares_parameters`: a rank along it holds a part of the parameters.
    `sees_calls`: it needs a graph that was read from a call (`models.read` with `call`).
    """

    name: str
    order: int
    borrows: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    splits_batch: bool
    splits_module: bool
    shares_parameters: bool
    sees_calls: bool

    def admits(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Refusal]:
        """The layouts that this axis cannot serve, and why."""
        ...

    def divides(self, graph: ModelGraph, layouts: Layouts) -> Shares:
        """What one rank holds and computes less of."""
        ...

    def computes(self, op: Op, layouts: Layouts) -> Part | None:
        """What part of an op one rank computes; none where the axis leaves it as it is."""
        ...

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        """What the ranks along this axis send each other in one optimiser step."""
        ...

    def apply(
        self, module: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
    ) -> "nn.Module":
        """`module` made parallel along this axis, in place where torch allows it."""
        ...


@runtime_checkable
class DrivesSteps(Protocol):
    """A module that runs the forward and backward passes of all micro batches of a step itself.

    `apply` of an axis may return one; it is called for evaluation as any module.
    """

    stages: "Sequence[nn.Module]"

    def forward_backward(
        self, losses: "Sequence[Callable[[nn.Module], Tensor]]", collect: "Callable[[], Tensor]"
    ) -> "Tensor":
        """Add the gradients of `losses`, one a micro batch, each called with a module.

        `collect` gives what the calls left behind on the rank that made them; the result is that,
        on every rank.
        """
        ...


def parts(module: Any) -> "Sequence[nn.Module]":
    """The modules of this rank that run as one: the stages that it holds, or the module itself."""
    return module.stages if isinstance(module, DrivesSteps) else [module]


def refuse(
    axis: str, layouts: Layouts, when: NDArray[np.bool_], found: str, rule: str, fix: str
) -> Refusal:
    """A refusal of the rows of degree above 1 where `when` holds; `{degree}` in words is filled."""
    degrees = layouts.degree(axis)
    refused = (degrees > 1) & when
    degree = int(degrees[refused].min()) if refused.any() else 1
    reason = SpecError(
        f"layout.{axis}", found.format(degree=degree), rule, fix.format(degree=degree)
    )
    return Refusal(refused=refused, reason=reason)


def refuse_batch_norm(axis: str, graph: ModelGraph, layouts: Layouts) -> list[Refusal]:
    """Refuse batch norm where the samples that it norms together depend on the layout.

    Over the samples of one micro batch it is right on any ranks (`axes/batch/norm.py`); which
    samples make a micro batch depends on the number of ranks.
    """
    cuts_step = (layouts.num_micro_batches > 1) | (layouts.degree("pipeline") > 1)
    named = "".join(f" ({path})" for path in [*graph.batch_norms][:1])
    return [
        refuse(
            axis,
            layouts,
            cuts_step & graph.has_batch_norm,
            f"degree {{degree}} and several micro batches for a model with batch norm{named}",
            "batch norm takes its mean over a micro batch, and which samples share one depends "
            "on the number of ranks (axes/batch/norm.py)",
            f"use one micro batch and pipeline=1, or {axis}=1, or group norm or layer norm in the "
            "model",
        )
    ]
