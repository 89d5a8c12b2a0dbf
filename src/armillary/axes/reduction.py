"""Gradients averaged over the ranks that take other samples, and parameters sharded over them.

The axes `data`, `sharded` and `expert` all take other samples, so they meet here: one reduction a
parameter, over all of them that hold it. torch's own parts do it: DDP where parameters are plain,
`replicate` and `fully_shard` of FSDP2 where they are DTensors or belong to a pipeline.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from armillary.axes import discover
from armillary.axes.spmd import SPMD
from armillary.spec import Layout, ModelGraph

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import DeviceMesh

SHARDS = "sharded"
ZERO, PREFETCH, BUCKET = "sharded.zero", "sharded.prefetch", "data.bucket_mib"


def reduce_gradients(
    part: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
) -> None:
    """Arrange that the gradients of `part` are averaged over the ranks that split the batch.

    Parameters that are a rank's own along an axis (`own_along`) are averaged over the others only.
    """
    axes = discover()
    names = [name for name in mesh.mesh_dim_names or () if axes[name].splits_batch]
    if not names:
        return
    units = [block.path for block in graph.blocks if _has(part, block.path)]
    apart = list(_own_modules(part))
    for path, axis in apart:
        _reduce(part.get_submodule(path), mesh, [name for name in names if name != axis], layout)
    if not apart and not _needs_fsdp(part, names):
        _replicate_by_ddp(part, mesh, names, layout)
        return
    ignored = {p for path, _ in apart for p in part.get_submodule(path).parameters()}
    for path in units:
        _reduce(part.get_submodule(path), mesh, names, layout, ignored)
    _reduce(part, mesh, names, layout, ignored)
    ahead = layout.options.get(PREFETCH, "auto")
    if SHARDS in names and ahead != "auto":
        _prefetch([part.get_submodule(path) for path in units], int(ahead))
    part.__dict__[REDUCES_EACH] = SHARDS in names and layout.options.get(ZERO, "3") != "1"


def synchronize(module: "nn.Module", is_last: bool) -> None:
    """Have the backward pass reduce gradients, or leave them for the last micro batch to reduce."""
    wanted = is_last or bool(module.__dict__.get(REDUCES_EACH))
    if (switch := getattr(module, "set_requires_gradient_sync", None)) is not None:
        switch(wanted)


OWN_ALONG = "_armillary_own_along"
REDUCES_EACH = "_armillary_reduces_each"


def own_along(module: "nn.Module", axis: str) -> None:
    """Say that the parameters of `module` are other ones on every rank along `axis`."""
    module.__dict__[OWN_ALONG] = axis


def _own_modules(part: "nn.Module") -> Iterator[tuple[str, str]]:
    for path, module in part.named_modules():
        if OWN_ALONG in module.__dict__:
            yield path, module.__dict__[OWN_ALONG]


def _needs_fsdp(part: "nn.Module", names: Sequence[str]) -> bool:
    """Whether DDP will not do: shards, DTensors, or a stage of a pipeline."""
    asked = part.__dict__.get(SPMD)
    cuts = asked is not None and (bool(asked.flows) or not (asked.is_first and asked.is_last))
    return SHARDS in names or cuts


def _prefetch(units: "Sequence[Any]", num_ahead: int) -> None:
    """Have every unit gather the parameters of the next ones, in both passes."""
    for i, unit in enumerate(units):
        unit.set_modules_to_forward_prefetch(list(units[i + 1 : i + 1 + num_ahead]))
        unit.set_modules_to_backward_prefetch(list(reversed(units[max(i - num_ahead, 0) : i])))


def _replicate_by_ddp(
    part: "nn.Module", mesh: "DeviceMesh", names: Sequence[str], layout: Layout
) -> None:
    from torch.distributed._composable.replicate import replicate

    group = _flat(mesh, names).get_group()
    bucket_cap_mb = float(layout.options.get(BUCKET, "25"))
    replicate(part, process_group=group, gradient_as_bucket_view=True, bucket_cap_mb=bucket_cap_mb)


def _reduce(
    module: "nn.Module",
    mesh: "DeviceMesh",
    names: Sequence[str],
    layout: Layout,
    ignored: "set[nn.Parameter] | None" = None,
) -> None:
    """Shard or replicate one unit over the axes `names` by FSDP2; over none, nothing is done."""
    from torch.distributed._composable.replicate_with_fsdp import replicate
    from torch.distributed.fsdp import fully_shard

    if not names:
        return
    replicas = [name for name in names if name != SHARDS]
    options: dict[str, Any] = {"ignored_params": ignored} if ignored else {}
    if SHARDS not in names:
        replicate(module, mesh=_flat(mesh, replicas), **options)
        return
    if layout.options.get(ZERO, "3") != "3":
        options["reshard_after_forward"] = False
    shard_mesh = mesh[SHARDS]
    if replicas:
        outer = _flat(mesh, replicas)
        shard_mesh = mesh[(*replicas, SHARDS)] if len(replicas) == 1 else _joined(outer, shard_mesh)
    fully_shard(module, mesh=shard_mesh, **options)


def _flat(mesh: "DeviceMesh", names: Sequence[str]) -> "DeviceMesh":
    """The mesh dims `names` as one."""
    if len(names) == 1:
        return mesh[names[0]]
    return mesh[tuple(names)]._flatten("_".join(names))


def _joined(outer: "DeviceMesh", inner: "DeviceMesh") -> "DeviceMesh":
    from torch.distributed import DeviceMesh

    return DeviceMesh._concatenate([outer, inner])


def _has(part: "nn.Module", path: str) -> bool:
    """Whether `part` holds the module at `path`, with parameters."""
    try:
        module = part.get_submodule(path)
    except AttributeError:
        return False
    return any(True for _ in module.parameters())
