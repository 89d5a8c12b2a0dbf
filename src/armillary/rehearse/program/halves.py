"""A backward pass in two halves, told block by block.

The half for what came in runs through the blocks as a whole pass does. The half for weights does
not: torch computes the gradients of one group of parameters after another, in the order of the
parameters. A group lies within a block, as far as its parameters do.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from armillary.rehearse.program.blocks import Run
from armillary.rehearse.program.world import swapped


@contextlib.contextmanager
def telling_weights(runs: Sequence[Run]) -> Iterator[None]:
    """A context in which blocks tell of the half of their backward pass that is for weights."""
    from torch.distributed.pipelining import stage  # takes 0.7 s

    compute = stage.stage_backward_weight

    def told(_: Any, groups: Sequence[Any]) -> None:
        owners = _owners(runs)

        def block_of(group: Any) -> tuple[Run, str] | None:
            within = {owners.get(id(node.variable)) for node in group["params"]}
            return within.pop() if len(within) == 1 else None

        for block, some in itertools.groupby(groups, block_of):
            of_block = [*some]
            weights = [node.variable for group in of_block for node in group["params"]]
            with contextlib.nullcontext() if block is None else block[0].telling(block[1]):
                compute(iter(weights), of_block)

    with swapped(stage, "stage_backward_weight", told):
        yield


def _owners(runs: Sequence[Run]) -> dict[int, tuple[Run, str]]:
    """By a parameter, as it is now, its block and the run of that."""
    return {
        id(parameter): (run, path)
        for run in runs
        for path, block in run.blocks
        for parameter in block.parameters()
    }
