"""The ranks of a run: who this process is, its device, and the mesh that the layout asks for."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from armillary.axes import discover
from armillary.spec import Layout, SpecError
from armillary.step.meeting import own_store
from armillary.step.seat import Seat

if TYPE_CHECKING:
    from torch.distributed import DeviceMesh

MICRO_BATCHES_A_STAGE = 4
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
VISIBLE_DEVICES = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among the ranks: `mesh` is None for a serial run, which needs no group."""

    rank: int
    num_ranks: int
    device: torch.device
    mesh: "DeviceMesh | None"
    batch_index: int
    batch_count: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes and prints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over the ranks that split the batch; same shape, on every rank.

        Ranks that hold the same samples count once.
        """
        if self.mesh is None:
            return values
        copies = self.num_ranks // self.batch_count
        on_device = values.to(self.device)
        dist.all_reduce(on_device)
        return (on_device / copies).to(values.device)


def pick_device(local_rank: int, name: str = "auto") -> torch.device:
    """The device of a rank: the accelerator with the number of its local rank, or the CPU.

    Raises: `SpecError` if the named device is not there.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "cpu" or (name == "auto" and accelerator is None):
        return torch.device("cpu")
    if accelerator is None or name not in ("auto", accelerator.type):
        raise SpecError(
            "device",
            f"{name!r} is not available",
            "a device is one that this torch build finds",
            f"use auto, cpu{f' or {accelerator.type}' if accelerator else ''}",
        )
    num_devices = torch.accelerator.device_count()
    if num_devices == 1 and _is_given_one(os.environ):
        return torch.device(accelerator.type, 0)
    if local_rank >= num_devices:
        raise SpecError(
            "layout",
            f"local rank {local_rank} of {num_devices} devices",
            "every rank has a device of its own",
            f"use at most {num_devices} ranks a node, or --device cpu",
        )
    return torch.device(accelerator.type, local_rank)


def _is_given_one(variables: Mapping[str, str]) -> bool:
    """Whether the launcher, or a script of the site, shows this rank one device of several."""
    named = [variables[name] for name in VISIBLE_DEVICES if variables.get(name)]
    return bool(named) and all("," not in text for text in named)


@contextlib.contextmanager
def join(layout: Layout, device_name: str = "auto", seat: Seat | None = None) -> Iterator[World]:
    """The world that `layout` asks for, entered by this process and left at the end.

    `seat` says where this process joins the process group; without one, torch's own variables do
    (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). A layout of one rank needs none. The
    device is set before the group is made: a backend may otherwise put all ranks on the first.
    """
    seat = seat or Seat.of_torch(os.environ)
    device = pick_device(seat.local_rank, device_name)
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    if layout.num_ranks == 1:
        yield meet(layout, device)
        return
    serving = own_store(os.environ) if seat.meeting is None else None
    dist.init_process_group(
        _backends(device),
        init_method=seat.meeting,
        store=seat.store,
        rank=-1 if seat.rank is None else seat.rank,
        world_size=-1 if seat.world_size is None else seat.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    try:
        yield meet(layout, device)
    finally:
        dist.destroy_process_group()
        del serving  # the store lasts as long as the group


def _backends(device: torch.device) -> str:
    """The device's own backend, and gloo on the CPU for checkpoints beside it."""
    if device.type == "cpu":
        return "gloo"
    return f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"


def meet(layout: Layout, device: torch.device) -> World:
    """The world of `layout` on the ranks of the process group, or of this process alone.

    Raises: `SpecError` if the layout is for another number of ranks.
    """
    if layout.num_ranks == 1:
        return World(rank=0, num_ranks=1, device=device, mesh=None, batch_index=0, batch_count=1)
    if dist.get_world_size() != layout.num_ranks:
        raise SpecError(
            "layout",
            f"{layout} is for {layout.num_ranks} ranks, the launcher started "
            f"{dist.get_world_size()}",
            "the product of the degrees is the number of ranks",
            "change the layout or the number of ranks",
        )
    mesh = _build_mesh(layout, device)
    index, count = _batch_coordinate(mesh)
    return World(
        rank=dist.get_rank(),
        num_ranks=layout.num_ranks,
        device=device,
        mesh=mesh,
        batch_index=index,
        batch_count=count,
    )


def _build_mesh(layout: Layout, device: torch.device) -> "DeviceMesh":
    """The device mesh of `layout`: one dim an axis of degree above 1, in the layout's order."""
    axes = {axis: degree for axis, degree in layout.degrees.items() if degree > 1}
    return dist.init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))


def _batch_coordinate(mesh: "DeviceMesh") -> tuple[int, int]:
    """Which part of every batch this rank computes: (index, count) over the axes that split it."""
    axes = discover()
    index, count = 0, 1
    for name in mesh.mesh_dim_names or ():
        if axes[name].splits_batch:
            size = mesh.size((mesh.mesh_dim_names or ()).index(name))
            index = index * size + mesh.get_local_rank(name)
            count *= size
    return index, count


def with_micro_batches(
    layout: Layout, batch_size: int, num_a_stage: int = MICRO_BATCHES_A_STAGE
) -> Layout:
    """`layout` with a micro batch size where axes cut the module and none is given.

    There are then about `num_a_stage` micro batches to every stage, as many as the batch allows.
    Source of the default: Huang et al. 2019, "GPipe", arXiv 1811.06965, section 3: the time that
    stages wait is negligible with four times as many micro batches as stages.
    """
    axes = discover()
    stages = prod(d for name, d in layout.degrees.items() if axes[name].splits_module)
    if stages == 1 or layout.micro_batch_size:
        return layout
    size = max(1, batch_size // count_shares(layout) // (num_a_stage * stages))
    return replace(layout, micro_batch_size=size)


def count_shares(layout: Layout) -> int:
    """Over how many ranks the samples of a step are split."""
    axes = discover()
    return prod(d for name, d in layout.degrees.items() if axes[name].splits_batch)


def count_micro_batches(layout: Layout, batch_size: int) -> int:
    """How many micro batches a rank makes of its share of a step."""
    if not layout.micro_batch_size:
        return 1
    return -(-batch_size // count_shares(layout) // layout.micro_batch_size)
