"""Embeddings and losses cut by the vocabulary: every rank knows some of the words.

Source: Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053, section 3: embeddings whose rows are
divided, and a cross entropy that sends a number a token where the logits would be a vocabulary.
"""

# Shapes: N tokens, V classes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from armillary.axes.autocast import widened

if TYPE_CHECKING:
    from torch import Tensor


def _embed(
    cut: Any, function: Any, ids: Any, weight: Any, padding_idx: Any = None, *args: Any, **kw: Any
) -> Any:
    """Rows of words that this rank does not know are zero; the ranks' rows are added."""
    from torch.distributed.tensor import Partial, Replicate

    if not cut.is_cut(weight, 0):
        return function(ids, weight, padding_idx, *args, **kw)
    ids = cut.laid(cut.on_mesh(ids, weight), Replicate())
    first, number = _words(cut, weight)
    local = ids.to_local() - first
    is_known = (local >= 0) & (local < number)
    padding = None if padding_idx is None else padding_idx % len(weight) - first
    padding = padding if padding is not None and 0 <= padding < number else None
    rows = function(
        local.where(is_known, 0), cut.local_weight(weight, ids), padding, *args, **kw
    ).where(is_known.unsqueeze(-1), 0)
    shape = [*ids.shape, weight.shape[1]]
    return cut.left(cut.joined(rows, ids, cut.placed(ids, Partial()), shape), ids.ndim - 1)


def _words(cut: Any, weight: Any, dim: int = 0) -> tuple[int, int]:
    """The first word that this rank knows, and their number."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offsets = compute_local_shape_and_global_offset(
        weight.shape, weight.device_mesh, weight.placements
    )
    return int(offsets[dim]), int(shape[dim])


def _cross_entropy(
    cut: Any,
    function: Any,
    logits: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """The loss of logits cut by class; what that cannot serve is computed on whole logits."""
    from torch.distributed.tensor import Replicate, Shard

    if logits.ndim < 2 or not cut.is_cut(logits, 1):
        others = (weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        return function(logits, target, *others)
    old_words = size_average is not None or reduce is not None
    is_plain = weight is None and not old_words and not label_smoothing
    is_plain &= all(type(p) is Shard or p.is_replicate() for p in logits.placements)
    if not is_plain or target.is_floating_point():
        others = (weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        return function(cut.laid(logits, Replicate()), target, *others)
    losses = _losses(cut, logits, cut.on_mesh(target, logits), ignore_index)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / (target != ignore_index).sum() if reduction == "mean" else total


def _losses(cut: Any, logits: Any, target: Any, ignore_index: int) -> Any:
    """The loss of every token, of the shape of `target`."""
    from torch.distributed.tensor import Replicate, Shard

    mesh_dim = cut.mesh_dim(logits)
    lies: list[Any] = []
    for dim, placement in enumerate(logits.placements):
        if dim == mesh_dim or not placement.is_shard():
            lies.append(Replicate())
        else:
            lies.append(placement if placement.dim < 1 else Shard(placement.dim - 1))
    target = target.redistribute(logits.device_mesh, lies)
    first, _ = _words(cut, logits, 1)
    group = logits.device_mesh, mesh_dim
    losses = _loss_function().apply(
        widened(logits.to_local().movedim(1, -1)), target.to_local(), first, ignore_index, group
    )
    return cut.joined(losses, logits, lies, target.shape)


def _loss_function() -> Any:
    import torch
    from torch.distributed._functional_collectives import all_reduce

    class LossByClass(torch.autograd.Function):
        """Logarithm of the sum of exponentials over all ranks' classes, less the target's logit."""

        @staticmethod
        def forward(
            ctx: Any, local: "Tensor", target: "Tensor", first: int, ignored: int, group: Any
        ) -> "Tensor":
            largest = all_reduce(local.amax(-1), "max", group)
            powers = (local - largest.unsqueeze(-1)).exp()
            here = target - first
            is_known = (here >= 0) & (here < local.shape[-1]) & (target != ignored)
            here = here.where(is_known, 0).unsqueeze(-1)
            known = local.gather(-1, here).squeeze(-1).where(is_known, 0)
            total, logit = all_reduce(torch.stack([powers.sum(-1), known]), "sum", group)
            ctx.save_for_backward(powers / total.unsqueeze(-1), here, is_known, target != ignored)
            return (total.log() + largest - logit).where(target != ignored, 0)

        @staticmethod
        def backward(ctx: Any, *gradients: "Tensor") -> Any:
            shares, here, is_known, counts = ctx.saved_tensors
            found = shares.scatter_add(-1, here, -is_known.unsqueeze(-1).to(shares.dtype))
            gradient = gradients[0].where(counts, 0).unsqueeze(-1) * found
            return gradient, None, None, None, None

    return LossByClass


HANDLERS: dict[str, Callable[..., Any]] = {"embedding": _embed, "cross_entropy": _cross_entropy}
