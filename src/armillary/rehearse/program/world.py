"""One rank among many that are not there: torch's fake process group, and the mesh on it."""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from armillary.rehearse.program.repeats import CannotFold
from armillary.spec import Layout, SpecError
from armillary.step.world import World, meet

CPU = torch.device("cpu")


@contextlib.contextmanager
def fake_world(layout: Layout, rank: int, *, allows_ddp: bool = True) -> Iterator[World]:
    """The world of `layout` as rank `rank` sees it; its collectives return at once, unanswered.

    Without `allows_ddp` a model that needs torch's DDP is left with `CannotFold`: its buckets go
    across blocks.

    Raises: `SpecError` if the layout has no such rank, or this process is in a process group.
    """
    check_rank(layout, rank)
    if dist.is_initialized():
        raise SpecError(
            "rehearse",
            "this process is a rank of a process group already",
            "a rank is rehearsed in a process of its own (rehearse/program/world.py)",
            "rehearse outside of a launcher, before any process group is made",
        )
    if layout.num_ranks == 1:
        yield meet(layout, CPU)
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    _forget_meshes()
    dist.init_process_group("fake", rank=rank, world_size=layout.num_ranks, store=FakeStore())
    try:
        with answering(allows_ddp):
            yield meet(layout, CPU)
    finally:
        dist.destroy_process_group()
        _forget_meshes()


def check_rank(layout: Layout, rank: int) -> None:
    """Raises: `SpecError` if `layout` has no rank `rank`."""
    if not 0 <= rank < layout.num_ranks:
        raise SpecError(
            "--rank",
            f"{rank} of {layout.num_ranks}",
            f"the ranks of {layout} are 0 to {layout.num_ranks - 1}",
            f"use one of 0 to {layout.num_ranks - 1}",
        )


def _forget_meshes() -> None:
    """Have DTensor forget how it computed on an equal mesh, of which this process was another rank,
    and whose groups are gone.
    """
    from torch.distributed.tensor import _redistribute
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    _clear_sharding_prop_cache()
    for found in vars(_redistribute).values():
        if hasattr(found, "cache_clear"):
            found.cache_clear()


@contextlib.contextmanager
def answering(allows_ddp: bool) -> Iterator[None]:
    """A context in which torch's DDP takes the silence of a fake process group for an answer, and
    meshes of many ranks are made once.

    DDP compares parameters and the order of its buckets between ranks, and waits for what a sum
    gives; a fake group gives nothing. The sums themselves are sent as ever, by a hook of ours.
    """
    from torch.distributed.tensor import _utils
    from torch.distributed.tensor.placement_types import _StridedShard
    from torch.nn.parallel import distributed

    # the package has a function of the module's name
    replicate = importlib.import_module("torch.distributed._composable.replicate")
    strided = _StridedShard.local_shard_size_and_offset
    places = _utils._compute_local_shape_and_global_offset
    with (
        swapped(_StridedShard, "local_shard_size_and_offset", _with_values(strided)),
        swapped(_utils, "_compute_local_shape_and_global_offset", _with_values(places)),
        swapped(distributed, "_verify_param_shape_across_processes", _agree),
        swapped(distributed, "_sync_module_states", _agree),
        swapped(replicate, "DistributedDataParallel", _ddp if allows_ddp else _no_ddp),
        swapped(dist.DeviceMesh, "_concatenate", staticmethod(_once(dist.DeviceMesh._concatenate))),
        swapped(dist.DeviceMesh, "__getitem__", _once(dist.DeviceMesh.__getitem__)),
    ):
        yield


def _with_values(count: Callable[..., Any]) -> Callable[..., Any]:
    """`count` run outside of fake tensors and of whoever watches.

    DTensor finds the rows of a dim that two axes cut by a small tensor of their numbers, which it
    reads (torch 2.13); that is no part of what a model computes.
    """

    @functools.wraps(count)
    def counted(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return count(*args, **kwargs)

    return counted


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, called once for equal arguments, meshes being equal where they are the same object.

    torch makes a mesh anew for every parameter, each of which lists all ranks: at 60,000 ranks 11
    ms (torch 2.13, measured), most of what it takes to shard a model.
    """
    known: dict[Any, tuple[Any, Any]] = {}

    def made(*args: Any) -> Any:
        key = tuple(
            tuple(map(id, a)) if isinstance(a, list) else id(a) if hasattr(a, "size") else a
            for a in args
        )
        if key not in known:
            known[key] = args, make(*args)
        return known[key][1]

    return made


@contextlib.contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A context in which `owner` has `value` under `name`."""
    before = inspect.getattr_static(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _agree(*_: Any, **__: Any) -> None:
    return None


def _ddp(*args: Any, **kwargs: Any) -> Any:
    """A DDP whose buckets are summed by a hook, and stay as they were first made."""
    made = torch.nn.parallel.DistributedDataParallel(*args, **kwargs)
    made.register_comm_hook(made.process_group, _sum_bucket)
    made.reducer = cast(Any, _FixedBuckets(made.reducer))
    return made


def _no_ddp(*_: Any, **__: Any) -> Any:
    raise CannotFold("DDP's buckets go across blocks")


def _sum_bucket(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    summed = bucket.buffer()
    dist.all_reduce(summed, group=group)
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(summed)
    return future


class _FixedBuckets:
    """torch's reducer, but for the agreement of all ranks on new buckets after the first pass."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def _rebuild_buckets(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)


def coordinates(layout: Layout, rank: int) -> dict[str, int]:
    """Where `rank` lies along every axis of the mesh, outermost first."""
    found = {}
    for axis, degree in reversed([(a, d) for a, d in layout.degrees.items() if d > 1]):
        rank, found[axis] = divmod(rank, degree)
    return dict(reversed(found.items()))
