"""A module, optimiser and loader made parallel: the axes applied in the order of the mesh."""

import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from armillary.axes import admit, discover
from armillary.axes.batch.ranks import note_samples
from armillary.axes.compose import OnceCut, compose
from armillary.feeds import Share
from armillary.models import Call, read
from armillary.spec import Layout, ModelGraph, SpecError
from armillary.step.batches import Collate, Feed
from armillary.step.precision import recompute_blocks
from armillary.step.world import World, meet, pick_device


def apply_layout(
    module: nn.Module, world: World, layout: Layout, call: Call | None = None, num_samples: int = 1
) -> tuple[nn.Module, ModelGraph]:
    """`module` made parallel as `layout` says, in place where torch allows, and its graph.

    `call` runs the model forward on `num_samples` samples, for axes that must see it.

    Raises: `SpecError` if an axis refuses the model.
    """
    graph = read(module, call, num_samples)
    return make_parallel(module, graph, world, layout), graph


def make_parallel(
    module: nn.Module,
    graph: ModelGraph,
    world: World,
    layout: Layout,
    *,
    once_cut: OnceCut | None = None,
) -> nn.Module:
    """`module`, of which `graph` was read, parallel as `layout` says, in place where torch allows.

    `once_cut` is called when the module has its rank's stages alone (`axes.compose`).

    Raises: `SpecError` if an axis refuses the model.
    """
    admit(layout, graph)
    recompute_blocks(module, graph, layout.recompute)
    if layout.compile:
        module.compile()
    if world.mesh is not None:
        return compose(module, world.mesh, layout, graph, once_cut)
    if once_cut is not None:
        once_cut(module, graph)
    return module


def sees_calls(layout: Layout) -> bool:
    """Whether an axis of `layout` must see the model called before it can say what it refuses."""
    admit(layout)
    axes = discover()
    return any(axes[name].sees_calls for name, degree in layout.degrees.items() if degree > 1)


def parallelize(
    model: nn.Module,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    layout: Layout | str,
    *,
    seed: int = 0,
) -> tuple[nn.Module, Optimizer, "ParallelLoader"]:
    """`model`, `optimizer` and `loader` for a loop of one's own, on this launcher's ranks.

    The model is made parallel in place and moved to the rank's device; the optimiser holds its new
    parameters. The loader yields this rank's part of the batches that `loader` would yield (its
    batch size is of all ranks), on the rank's device. A loss that is a mean over the samples of
    the rank's batch gives the gradient of the mean over all ranks' samples, also where the parts
    differ in size: the gradient that flows into the model's outputs is weighted by the part.
    Every rank begins with the parameters of the first.

    Raises: `SpecError` if no launcher started the ranks, or the optimiser already holds state.

    Example (under `torchrun --nproc-per-node 4`):
        model, optimizer, loader = armillary.parallelize(model, optimizer, loader, "data=4")
        for batch in loader:
            loss(model(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
    """
    layout = Layout.parse(layout) if isinstance(layout, str) else layout
    _leave_to_the_loop(layout)
    world = _join_launcher(layout)
    if optimizer.state:
        raise SpecError(
            "optimizer",
            "already holds state",
            "a layout is applied before training",
            "pass a fresh optimizer",
        )
    model.to(world.device)
    if world.mesh is not None:
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, 0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    _refuse_seeing(layout)
    apply_layout(model, world, layout)
    renewed = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [renewed[names[parameter]] for parameter in group["params"]]
    parallel_loader = ParallelLoader(loader, world, layout, seed)
    model.register_forward_hook(parallel_loader.weigh)
    return model, optimizer, parallel_loader


def _leave_to_the_loop(layout: Layout) -> None:
    """Refuse what a layout asks of a loop that is not ours."""
    for name, own in (("precision", "torch.autocast"), ("micro_batch_size", "a smaller batch")):
        if getattr(layout, name) != getattr(Layout(), name):
            raise SpecError(
                f"layout.{name}",
                f"{getattr(layout, name)} for a loop of one's own",
                "the loop decides how a step computes, the layout where",
                f"leave it out, and use {own} in the loop",
            )


def _refuse_seeing(layout: Layout) -> None:
    """Refuse the axes that must see the model called, which a loop of one's own does later."""
    admit(layout)
    for name, degree in layout.degrees.items():
        if degree > 1 and discover()[name].sees_calls:
            raise SpecError(
                f"layout.{name}",
                f"degree {degree} for a loop of one's own",
                f"the {name} axis must see how the model is called before it is cut",
                "write the case as a recipe and use `armillary train`",
            )


def _join_launcher(layout: Layout) -> World:
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() and layout.num_ranks > 1:
            raise SpecError(
                "layout",
                f"{layout} without a launcher",
                "a loop of one's own runs on ranks that a launcher started",
                f"torchrun --nproc-per-node {layout.num_ranks} my_script.py",
            )
        if layout.num_ranks > 1:
            dist.init_process_group()
    return meet(layout, pick_device(dist.get_node_local_rank(0) if dist.is_initialized() else 0))


class ParallelLoader:
    """This rank's part of a loader's batches; an iteration is an epoch, in an order of its own."""

    def __init__(self, loader: DataLoader[Any], world: World, layout: Layout, seed: int) -> None:
        if loader.batch_size is None:
            raise SpecError(
                "loader",
                "has a batch sampler of its own",
                "the loader's batch size is divided over the ranks",
                "pass DataLoader(dataset, batch_size=...)",
            )
        shuffles = type(loader.sampler) is torch.utils.data.RandomSampler
        if loader.drop_last or not (
            shuffles or type(loader.sampler) is torch.utils.data.SequentialSampler
        ):
            raise SpecError(
                "loader",
                "drop_last" if loader.drop_last else f"a {type(loader.sampler).__name__}",
                "the order of samples is a function of seed and epoch, and none is dropped",
                "pass DataLoader(dataset, batch_size=..., shuffle=...) with drop_last=False",
            )
        self.device, self.batch_count = world.device, world.batch_count
        self.weight = 1.0
        self.feed = Feed(
            loader.dataset,
            batch_size=loader.batch_size,
            share=Share(index=world.batch_index, count=world.batch_count),
            seed=seed,
            shuffle=shuffles,
            collate=cast(Collate, loader.collate_fn),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
        )

    def __len__(self) -> int:
        return self.feed.num_steps

    def __iter__(self) -> Iterator[Any]:
        for step in self.feed.steps():
            for batch, count in step.micro_batches:
                note_samples(count)
                self.weight = count * self.batch_count / step.num_samples
                yield to_device(batch, self.device)
        note_samples(1)  # what is computed outside of the loop counts

    def weigh(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        """A forward hook: outputs whose gradient is weighted by this rank's part of the batch."""
        if self.weight == 1.0 or not torch.is_grad_enabled():
            return outputs
        return tree_map_only(torch.Tensor, lambda t: _Weighted.apply(t, self.weight), outputs)


class _Weighted(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: float) -> torch.Tensor:
        ctx.weight = weight
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * ctx.weight, None


def plain(values: Any) -> Any:
    """`values` with every DTensor among them as the whole tensor that it stands for."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is None:  # then there is none, and a serial run does not pay for the import
        return values
    return tree_map_only(distributed.DTensor, lambda tensor: tensor.full_tensor(), values)


def to_device(batch: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """`batch` with its tensors on `device`, those of floating point as `dtype` if given."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=device, dtype=wanted, non_blocking=True)

    return tree_map_only(torch.Tensor, moved, batch)
