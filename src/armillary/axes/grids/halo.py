"""Rows of neighbours: what a window that reaches over the edge of a rank's rows needs of others.

Every rank holds equally many rows and makes the same share of what comes out, so windows that
reach over an edge need some rows of the ranks next to it, and nothing else.

Source: Dryden et al. 2019, "Improving Strong-Scaling of CNN Training by Exploiting Finer-Grained
Parallelism", IPDPS, section III.
"""

# Shapes: [B, C, ...] of B samples, C channels and the grid's dims, one of which is cut
from functools import cache
from typing import TYPE_CHECKING, Any

from armillary.axes.stand_in import original
from armillary.spec import SpecError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

UP_TAG, DOWN_TAG = 3, 4


def neighbours(
    local: "Tensor",
    dim: int,
    before: int,
    after: int,
    group: "ProcessGroup",
    is_periodic: bool,
    fill: float = 0.0,
) -> "tuple[Tensor, Tensor]":
    """The last `before` rows of the rank ahead and the first `after` of the one behind.

    Rows lie along `dim`. At the ends of the grid they are those of the other end, or `fill`.
    Gradients go back to the ranks that hold the rows.
    """
    found: tuple[Tensor, Tensor] = _function().apply(
        local, dim, before, after, group, is_periodic, fill
    )
    return found


@cache
def _function() -> Any:
    """The differentiable exchange; made when first used, as torch is not imported before."""
    import torch

    class Neighbours(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            local: Any,
            dim: int,
            before: int,
            after: int,
            group: Any,
            is_periodic: bool,
            fill: float,
        ) -> Any:
            ctx.saved = local.shape, dim, before, after, group, is_periodic
            length = local.shape[dim]
            ahead, behind = _ranks_beside(group, is_periodic)
            front = _filled(local, dim, before, fill)
            back = _filled(local, dim, after, fill)
            _swap(
                [
                    (local.narrow(dim, length - before, before), behind, front, ahead, DOWN_TAG),
                    (local.narrow(dim, 0, after), ahead, back, behind, UP_TAG),
                ],
                group,
            )
            return front, back

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad_front: Any, grad_back: Any) -> Any:
            shape, dim, before, after, group, is_periodic = ctx.saved
            ahead, behind = _ranks_beside(group, is_periodic)
            gradient = grad_front.new_zeros(shape)
            last, first = torch.zeros_like(grad_front), torch.zeros_like(grad_back)
            _swap(
                [
                    (grad_front, ahead, last, behind, UP_TAG),
                    (grad_back, behind, first, ahead, DOWN_TAG),
                ],
                group,
            )
            gradient.narrow(dim, shape[dim] - before, before).add_(last)
            gradient.narrow(dim, 0, after).add_(first)
            return gradient, None, None, None, None, None, None

    return Neighbours


def _ranks_beside(group: "ProcessGroup", is_periodic: bool) -> tuple[int | None, int | None]:
    """The ranks of `group` that hold the rows ahead and behind, None beyond the grid's ends."""
    rank, degree = group.rank(), group.size()
    if is_periodic:
        return (rank - 1) % degree, (rank + 1) % degree
    return (rank - 1 if rank else None), (rank + 1 if rank + 1 < degree else None)


def _filled(local: "Tensor", dim: int, num_rows: int, fill: float) -> "Tensor":
    shape = list(local.shape)
    shape[dim] = num_rows
    return local.new_full(shape, fill)


def _swap(messages: Any, group: "ProcessGroup") -> None:
    """Send and receive (sent, to whom, received, from whom, tag); to and from None is not."""
    import torch.distributed as dist

    operations, sent = [], []
    for leaving, receiver, _, _, tag in messages:
        if receiver is not None and leaving.numel():
            sent.append(leaving.contiguous())
            operations.append(
                dist.P2POp(dist.isend, sent[-1], group=group, tag=tag, group_peer=receiver)
            )
    for _, _, arriving, sender, tag in messages:
        if sender is not None and arriving.numel():
            operations.append(
                dist.P2POp(dist.irecv, arriving, group=group, tag=tag, group_peer=sender)
            )
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()


def cut_of(x: Any, num_kept: int = 2) -> tuple[int, int] | None:
    """The dim of the mesh and the dim of the grid along which `x` is cut, None if it is not."""
    placements = getattr(x, "placements", ())
    found = [
        (mesh_dim, placement.dim)
        for mesh_dim, placement in enumerate(placements)
        if placement.is_shard() and placement.dim >= num_kept
    ]
    return found[0] if len(found) == 1 else None


def entry(value: Any, place: int) -> Any:
    """What a setting of every dim of the grid, or of each, says of dim number `place`."""
    return value[place] if isinstance(value, (tuple, list)) else value


def refuse(what: str, x: Any, rule: str) -> SpecError:
    """What a cut grid cannot be put through, as an error with its shape and ranks."""
    return SpecError(
        "layout.sequence",
        f"{what} of {tuple(x.shape)} cut over {tuple(x.device_mesh.shape)} ranks",
        f"{rule} (axes/grids/halo.py)",
        "use a degree that divides the rows, or sequence=1",
    )


def window_of(
    what: str, x: Any, cut: tuple[int, int], size: int, stride: int, dilation: int, padding: Any
) -> tuple[int, int]:
    """How many rows of the ranks ahead and behind a window needs; negative: so many less."""
    degree, length = x.device_mesh.size(cut[0]), x.shape[cut[1]]
    reach = dilation * (size - 1)
    before = {"valid": 0, "same": reach // 2}.get(padding, padding)
    out = (length + (reach if padding == "same" else 2 * before) - reach - 1) // stride + 1
    after = reach + 1 - stride - before
    if out * stride != length or length % (stride * degree):
        raise refuse(what, x, "windows of a cut grid begin at equal steps on every rank")
    if max(before, after) > length // degree:
        raise refuse(what, x, "a window reaches no further than the neighbours' rows")
    return before, after


def extended(
    local: "Tensor", x: Any, cut: tuple[int, int], window: tuple[int, int], mode: str, fill: float
) -> "Tensor":
    """The local rows between those of the neighbours, or without those that no window needs."""
    import torch

    (mesh_dim, dim), (before, after) = cut, window
    group = x.device_mesh.get_group(mesh_dim)
    local = local.narrow(dim, 0, local.shape[dim] + after) if after < 0 else local
    if before <= 0 and after <= 0:
        return local
    after = max(after, 0)
    front, back = neighbours(local, dim, before, after, group, mode == "circular", fill)
    if mode in ("reflect", "replicate"):
        sizes = [0, 0] * (local.ndim - 1 - dim) + [before, after]
        sizes += [0, 0] * (local.ndim - 2 - len(sizes) // 2)
        pieces = [front] * (group.rank() > 0) + [local] + [back] * (group.rank() < group.size() - 1)
        padded = original("pad")(torch.cat(pieces, dim), sizes, mode=mode)
        if group.rank() == 0:
            front = padded.narrow(dim, 0, before)
        if group.rank() == group.size() - 1:
            back = padded.narrow(dim, padded.shape[dim] - after, after)
    return torch.cat([front, local, back], dim)


def joined(local: "Tensor", mesh: Any, placements: Any, shape: Any) -> Any:
    """The local part of a tensor of `shape` as a DTensor."""
    import torch
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local.contiguous(),
        mesh,
        placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=torch.empty(shape, device="meta").stride(),
    )
