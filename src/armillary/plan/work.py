"""What one rank computes and keeps for one micro batch, in seconds and bytes, as columns."""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from armillary.plan.grid import Column


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds and bytes of one rank for one micro batch, if it held all of a part of the model.

    All broadcast to the grid. `backward_input_s` makes the gradients of activations,
    `backward_weight_s` those of parameters; `again_s` is what selective
    recomputing repeats, `whole_again_s` what full recomputing does. The
    `_launch_s` are what the host needs to launch the kernels of a pass, beside which the device
    computes. `saved_bytes` autograd keeps, `selective_bytes` with selective recomputing;
    `workspace_bytes` is the most that one op needs besides; `num_parameters` are held before they
    are sharded, of which the `num_expert_parameters` are of routed experts.
    """

    forward_s: Column
    backward_input_s: Column
    backward_weight_s: Column
    again_s: Column
    whole_again_s: Column
    forward_launch_s: Column
    backward_launch_s: Column
    saved_bytes: Column
    selective_bytes: Column
    workspace_bytes: Column
    num_parameters: Column
    num_expert_parameters: Column
    flops: Column

    def __add__(self, other: "Work") -> "Work":
        return self.then(other, 1.0)

    def then(self, other: "Work", times: float | Column) -> "Work":
        """This, and after it `times` the other."""
        return Work(
            *(
                np.maximum(a, b) if name == "workspace_bytes" else a + b * times
                for name, a, b in _pairs(self, other)
            )
        )

    def dearer(self, other: "Work") -> "Work":
        """Of each second and byte the larger of the two."""
        return Work(*(np.maximum(a, b) for _, a, b in _pairs(self, other)))

    def rows(self, index: NDArray[np.int64]) -> "Work":
        """The same, with the rows `index` of the first dim."""
        return Work(*(a[index] if a.shape[0] > 1 else a for _, a, _ in _pairs(self, self)))


WORK = tuple(field.name for field in fields(Work))


def _pairs(one: Work, other: Work) -> list[tuple[str, Column, Column]]:
    return [(name, getattr(one, name), getattr(other, name)) for name in WORK]


@dataclass(frozen=True, slots=True)
class Parts:
    """The work of a model: before the chain of blocks, of all its blocks, and after it.

    Where a model has no chain everything is in `before`. `block` is the dearest block alone, and
    `entry_share` what a rank has of the positions that a block takes in.
    """

    before: Work
    blocks: Work
    after: Work
    block: Work
    num_blocks: int
    entry_share: Column

    def rows(self, index: NDArray[np.int64]) -> "Parts":
        """The same, with the rows `index` of the first dim."""
        works = {name: getattr(self, name).rows(index) for name in WORKS}
        return replace(self, **works, entry_share=self.entry_share[index])


WORKS = ("before", "blocks", "after", "block")
"""The fields of `Parts` that are work."""
