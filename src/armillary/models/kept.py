"""What of a block the backward pass asks for: up to where recomputing it has to run.

A block that is recomputed stops once all that autograd keeps of it is there again, so the last sum
of a block is added twice only where something behind it is kept.
"""

from collections.abc import Sequence

from armillary.models.operations import Operation, Operations

KEEPS_NOTHING = {
    *(
        "add",
        "add_",
        "sub",
        "sub_",
        "neg",
        "sum",
        "mean",
        "cat",
        "stack",
        "split",
        "chunk",
        "clone",
    ),
    *("view", "_unsafe_view", "reshape", "transpose", "permute", "t", "unsqueeze", "squeeze"),
    *("expand", "slice", "select", "unbind", "alias", "detach", "_to_copy", "contiguous"),
    *(
        "split_with_sizes",
        "zeros_like",
        "ones_like",
        "new_zeros",
        "eq",
        "ne",
        "lt",
        "gt",
        "argsort",
    ),
}
"""Operations of which autograd keeps no tensor for the backward pass."""
SCALED = ("mul", "mul_", "div", "div_")


def find_last(operations: Operations, blocks: Sequence[str]) -> set[str]:
    """The parameters that blocks use where nothing they do afterwards is kept."""
    kept: dict[str, int] = {}
    used: dict[str, tuple[str, int]] = {}
    for path, place in operations.draws:
        kept[_block_of(path, blocks)] = place
    learned: set[int] = set()
    for place, step in enumerate(operations.steps):
        if not any(v.parameter or v.number in learned for v in step.inputs):
            continue
        block = _block_of(step.path, blocks)
        learned |= {v.number for v in step.outputs}
        used |= {v.parameter: (block, place) for v in step.inputs if v.parameter}
        if _keeps(step):
            kept[block] = max(kept.get(block, 0), place)
    return {path for path, (block, place) in used.items() if block and place >= kept.get(block, 0)}


def _block_of(path: str, blocks: Sequence[str]) -> str:
    return next((block for block in blocks if f"{path}.".startswith(f"{block}.")), "")


def _keeps(step: Operation) -> bool:
    """Whether autograd keeps a tensor of this operation, of what depends on parameters."""
    if step.name in SCALED:
        return len(step.inputs) > 1  # by a number nothing is kept
    return step.name not in KEEPS_NOTHING
