"""Norms by groups of channels over a grid of which every rank of a group holds as many rows.

One message forward, of each rank's mean and spread, and one backward, of two sums of gradients.

Source: Wu & He 2018, "Group Normalization", arXiv 1803.08494, eq. 1 to 4; merging, Chan, Golub &
LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", Stanford
STAN-CS-79-773, eq. 2.1.
"""

# Shapes: [B, C, ...] of B samples, C channels and the grid's dims; G groups, P values of a group on
# a rank, W ranks
from functools import cache
from typing import TYPE_CHECKING, Any

from armillary.axes.gather import gather_into

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def norm_over_rows(local: "Tensor", num_groups: int, eps: float, group: "ProcessGroup") -> "Tensor":
    """This rank's rows [B, C, ...], normed by `num_groups` over the rows of all ranks of `group`;
    same shape and dtype.
    """
    normed: Tensor = _function().apply(local, num_groups, eps, group)
    return normed


@cache
def _function() -> Any:
    """The differentiable norm; made when first used, as torch is not imported before."""
    import torch
    import torch.distributed as dist

    def grouped(tensor: Any, num_groups: int) -> Any:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        return tensor.reshape(len(tensor), num_groups, -1).to(wide)

    class NormOverRows(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, num_groups: int, eps: float, group: Any) -> Any:
            x_BGP = grouped(x, num_groups)
            mean_BG = x_BGP.mean(-1)
            squares_BG = (x_BGP - mean_BG[..., None]).square().sum(-1)
            own = torch.stack([mean_BG, squares_BG])
            each = own.new_empty(group.size(), *own.shape)
            gather_into(each, own[None], group)
            mean_WBG, squares_WBG = each.unbind(1)
            number = x_BGP.shape[-1]
            mean_BG = mean_WBG.mean(0)
            squares_BG = (squares_WBG + number * (mean_WBG - mean_BG).square()).sum(0)
            scale_BG = (squares_BG / (number * group.size()) + eps).rsqrt()
            ctx.save_for_backward(x, mean_BG, scale_BG)
            ctx.num_groups, ctx.group = num_groups, group
            normed_BGP = (x_BGP - mean_BG[..., None]) * scale_BG[..., None]
            return normed_BGP.view(x.shape).to(x.dtype)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Any) -> Any:
            x, mean_BG, scale_BG = ctx.saved_tensors
            given_BGP = grouped(gradient, ctx.num_groups)
            normed_BGP = grouped(x, ctx.num_groups).sub(mean_BG[..., None])
            normed_BGP = normed_BGP * scale_BG[..., None]
            total = torch.stack([given_BGP.sum(-1), (given_BGP * normed_BGP).sum(-1)])
            dist.all_reduce(total, group=ctx.group)
            mean, along = (total / (x[0].numel() // ctx.num_groups * ctx.group.size()))[..., None]
            back_BGP = (given_BGP - mean - normed_BGP * along) * scale_BG[..., None]
            return back_BGP.view(x.shape).to(x.dtype), None, None, None

    return NormOverRows
