"""How a cut of a tensor goes through one operation: rules of shape, for any model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from armillary.models.operations import Operation, Value


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a tensor is cut: along `dim`, by the units of `region`, of which there are at most
    `num_units` there.

    Where `outer` is above 1 the dim was made of others: it holds so many runs, each cut alike.
    """

    dim: int
    region: int
    num_units: int
    outer: int = 1


class NeedsAll(Exception):
    """An operation that takes what is cut as a whole, and why."""


class TakenApart(NeedsAll):
    """An operation that takes apart the dim that is cut: it holds pieces, not units."""


def through_view(cut: Cut, old: Sequence[int], new: Sequence[int]) -> Cut:
    """The cut after the elements of a tensor of shape `old` are read in order as `new`."""
    major, extent = prod(old[: cut.dim]) * cut.outer, old[cut.dim] // cut.outer
    before = 1
    for dim, size in enumerate(new):
        if before <= major < before * size and major % before == 0:
            outer = major // before
            if size % outer == 0:
                num_units = min(cut.num_units, extent, size // outer)
                return Cut(dim, cut.region, num_units, outer)
        before *= size
    raise NeedsAll("reshaped across its units")


def into_pieces(cut: Cut, old: Sequence[int], new: Sequence[int]) -> tuple[Cut, int] | None:
    """The cut after the last dim became pieces of equal length, each of them cut, and their
    number; None where it did not.
    """
    dim = len(old) - 1
    is_last = cut.dim == dim and cut.outer == 1 and len(new) >= len(old) + 1
    if not is_last or tuple(new[:dim]) != tuple(old[:dim]) or new[dim] == 1:
        return None
    return Cut(dim + 1, cut.region, new[dim + 1]), new[dim]


def _permuted(cut: Cut, step: Operation) -> Cut:
    ndim = len(step.inputs[0].shape)
    if step.name == "t":
        order = [1, 0] if ndim == 2 else [0]
    elif step.name == "permute":
        order = [d % ndim for d in step.argument(1, "dims")]
    else:
        first, second = (step.argument(i, f"dim{i - 1}") % ndim for i in (1, 2))
        order = list(range(ndim))
        order[first], order[second] = order[second], order[first]
    return replace(cut, dim=order.index(cut.dim))


def _unsqueezed(cut: Cut, step: Operation) -> Cut:
    dim = step.argument(1, "dim") % len(step.outputs[0].shape)
    return replace(cut, dim=cut.dim + (dim <= cut.dim))


def _viewed(cut: Cut, step: Operation) -> Cut:
    return through_view(cut, step.inputs[0].shape, step.outputs[0].shape)


def _expanded(cut: Cut, step: Operation) -> Cut:
    old, new = step.inputs[0].shape, step.outputs[0].shape
    dim = cut.dim + len(new) - len(old)
    if new[dim] != old[cut.dim]:
        raise NeedsAll("repeated along its units")
    return replace(cut, dim=dim)


def _along(step: Operation, name: str = "dim", place: int = 1, default: int = 0) -> int:
    dim: int = step.argument(place, name, default)
    return dim % len(step.inputs[0].shape)


def _sliced(cut: Cut, step: Operation) -> Cut:
    same = step.outputs[0].shape == step.inputs[0].shape
    if _along(step) == cut.dim and not same:
        raise NeedsAll("sliced along its units")
    return cut


def _selected(cut: Cut, step: Operation) -> Cut:
    dim = _along(step)
    if dim == cut.dim:
        raise TakenApart("taken apart along its units")
    return replace(cut, dim=cut.dim - (dim < cut.dim))


def _split(cut: Cut, step: Operation) -> Cut:
    if _along(step, place=2) == cut.dim:
        raise NeedsAll("taken apart along its units")
    return cut


def _kept_but(cut: Cut, step: Operation) -> Cut:
    """What mixes one dim: softmax, cumulated sums."""
    if _along(step) == cut.dim:
        raise NeedsAll(f"mixed by {step.name.strip('_')} along its units")
    return cut


def _reduced(cut: Cut, step: Operation) -> Cut:
    ndim = len(step.inputs[0].shape)
    dims = step.argument(1, "dim")
    dims = range(ndim) if dims is None or dims == [] else dims
    dims = {d % ndim for d in ([dims] if isinstance(dims, int) else dims)}
    if cut.dim in dims:
        raise NeedsAll(f"reduced by {step.name} along its units")
    if len(step.outputs[0].shape) == ndim:
        return cut
    return replace(cut, dim=cut.dim - sum(d < cut.dim for d in dims))


def _normed(cut: Cut, step: Operation) -> Cut:
    """A norm over the last dims."""
    num_normed = len(step.argument(1, "normalized_shape"))
    if cut.dim >= len(step.inputs[0].shape) - num_normed:
        raise NeedsAll("normed over its units")
    return cut


def _gridded(cut: Cut, step: Operation) -> Cut:
    """What acts on the dims of a grid, behind samples and channels."""
    if cut.dim > 1 or len(step.inputs[0].shape) < 3 or cut.outer > 1:
        raise NeedsAll(f"mixed by {step.name} along its units")
    if step.name == "pad" and len(step.argument(1, "pad")) > 2 * (len(step.inputs[0].shape) - 2):
        raise NeedsAll("padded along its units")
    return cut


def _same(cut: Cut, step: Operation) -> Cut:
    return cut


RULES: dict[str, Callable[[Cut, Operation], Cut]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape"), _viewed),
    **dict.fromkeys(("detach", "alias", "clone", "contiguous", "_to_copy", "lift_fresh"), _same),
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like"), _same),
    **dict.fromkeys(("transpose", "permute", "t"), _permuted),
    **dict.fromkeys(("select", "unbind"), _selected),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum"), _kept_but),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "linalg_vector_norm"), _reduced),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normed),
    **dict.fromkeys(("pad", "interpolate"), _gridded),
    **{f"{k}_pool{n}d": _gridded for k in ("avg", "max", "adaptive_avg") for n in (1, 2, 3)},
    "slice": _sliced,
    "unsqueeze": _unsqueezed,
    "squeeze": _viewed,
    "expand": _expanded,
}
"""How a cut of the first tensor goes through an operation, by the operation's name."""


def aligned(cut: Cut, value: Value, result: Value) -> int:
    """The dim of `result` in which `value`, broadcast to it, is cut."""
    return cut.dim + len(result.shape) - len(value.shape)
