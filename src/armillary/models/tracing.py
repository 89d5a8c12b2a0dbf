"""A training step of a module as ops: what it computes, moves, keeps and holds, without running it.

The module is copied without its values (torch's fake tensors), and one step is watched forward and
backward, with the batch and with twice as many samples. Blocks that are alike are watched once. A
model whose code looks at values, or calls an operator that knows no shapes, is run on the batch as
it is instead.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from armillary.models.cost.fit import Run, segments_of
from armillary.models.cost.formulas import tensors_of
from armillary.models.cost.recorder import Recorder, Where
from armillary.models.cost.replay import Blocks
from armillary.models.cost.stand_ins import StandIns
from armillary.models.cost.telling import told_of
from armillary.models.reading import block_paths, read
from armillary.models.store import key_of, remembered
from armillary.spec import ModelGraph, SpecError

Loss = Callable[[nn.Module, Any], Any]


def trace(
    module: nn.Module,
    loss: Loss,
    batch: Any,
    num_samples: int,
    *,
    double: Any = None,
    folder: Path | None = None,
) -> ModelGraph:
    """What `models.read` finds of `module`, and its `segments`: every op of a step, per sample.

    `loss(module, batch)` is a step's forward pass on `num_samples` samples; its first tensor is
    what gradients are of. `double` is a batch of twice as many; without it every tensor of `batch`
    whose dim 0 is `num_samples` is taken twice. Module and batch may be on any device, also
    without memory (meta), and stay as they are. With a `folder` the graph is kept there as a file,
    by the content of all this, and read again the next time.

    Raises: `SpecError` where the model cannot be watched without values that it does not have, or
    runs other ops with other numbers of samples.
    """
    _check_batch(batch, num_samples)
    double = _twice(batch, num_samples) if double is None else double
    if folder is None:
        return _trace(module, loss, batch, double, num_samples)
    key = key_of(told_of(module, loss, (batch, double), num_samples))
    return remembered(folder, key, lambda: _trace(module, loss, batch, double, num_samples))


def _trace(module: nn.Module, loss: Loss, batch: Any, double: Any, num_samples: int) -> ModelGraph:
    try:
        return _without_values(module, loss, batch, double, num_samples)
    except SpecError:
        raise
    except Exception as error:  # whatever a model's own code raises where tensors have no values
        if any(tensor.is_meta for tensor in _held(module)) or _is_meta(batch):
            raise _unwatchable(module, error) from error
    batches = [tree_map_only(torch.Tensor, lambda t: t.detach().cpu(), b) for b in (batch, double)]
    return _traced(lambda: copy.deepcopy(module).cpu(), loss, batches, num_samples, folds=False)


def _without_values(
    module: nn.Module, loss: Loss, batch: Any, double: Any, num_samples: int
) -> ModelGraph:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        batches = [tree_map_only(torch.Tensor, _empty, part) for part in (batch, double)]
        return _traced(partial(_hollow, module, mode), loss, batches, num_samples, folds=True)


def _traced(
    copied: Callable[[], nn.Module],
    loss: Loss,
    batches: Sequence[Any],
    num_samples: int,
    *,
    folds: bool,
) -> ModelGraph:
    """The graph, and its segments; each look is at a copy of its own, as calls may leave traces."""
    module = copied()
    with StandIns():
        graph = read(module, lambda model: loss(model, batches[0]), num_samples)
    small, large = (
        _watched(copied(), loss, part, num_samples * times, graph, folds=folds)
        for part, times in zip(batches, (1, 2), strict=True)
    )
    return replace(
        graph,
        segments=segments_of(small, large, graph),
        element_bytes=_element_bytes(small, module),
    )


def _watched(
    module: nn.Module, loss: Loss, batch: Any, num_samples: int, graph: ModelGraph, *, folds: bool
) -> Run:
    """One step, forward and backward, op by op."""
    where = Where()
    names = {p.untyped_storage()._cdata: name for name, p in module.named_parameters()}
    recorder = Recorder(where, names, graph)
    blocks = Blocks(recorder, where, folds=folds)
    hooks = torch.autograd.graph.saved_tensors_hooks(recorder.pack, recorder.unpack)
    with ExitStack() as stack:
        stack.enter_context(_entered(module, where))
        stack.enter_context(blocks.watching(module, block_paths(module)))
        stack.enter_context(torch.random.fork_rng(devices=[]) if not folds else nullcontext())
        stack.enter_context(torch.enable_grad())
        module.train()
        with recorder, StandIns(recorder), hooks:
            given = tensors_of(loss(module, batch))
            recorder.settle(blocks.shared)
            recorder.is_backward = True
            if given and given[0].requires_grad:
                with recorder.paused():
                    total = given[0].sum()
                total.backward()
    return Run(num_samples, recorder.events, [group.paths for group in blocks.groups])


@contextmanager
def _entered(module: nn.Module, where: Where) -> Iterator[None]:
    """The path of the innermost module, as long as the context lasts."""
    handles = []
    for path, part in module.named_modules():

        def enter(module: nn.Module, args: Any, path: str = path) -> None:
            where.stack.append(path)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            where.stack.pop()

        handles.append(part.register_forward_pre_hook(enter))
        handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hollow(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of `module` whose parameters and buffers have shapes alone."""
    memo: dict[int, Any] = {}
    for tensor in _held(module):
        with mode:
            like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                like = nn.Parameter(like, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = like
    return copy.deepcopy(module, memo)


def _held(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    like = torch.empty(tensor.shape, dtype=tensor.dtype)
    return like.requires_grad_(tensor.requires_grad)


def _twice(batch: Any, num_samples: int) -> Any:
    def twice(tensor: torch.Tensor) -> torch.Tensor:
        has_samples = tensor.ndim > 0 and len(tensor) == num_samples
        return torch.cat([tensor, tensor]) if has_samples else tensor

    return tree_map_only(torch.Tensor, twice, batch)


def _is_meta(batch: Any) -> bool:
    return any(tensor.is_meta for tensor in tensors_of(batch))


def _check_batch(batch: Any, num_samples: int) -> None:
    if num_samples < 1 or not tensors_of(batch):
        raise SpecError(
            "model.batch",
            f"{num_samples} samples in {len(tensors_of(batch))} tensors",
            "a step is watched with at least one sample (models/tracing.py)",
            "give a batch as the recipe's loader makes it, and its number of samples",
        )


def _unwatchable(module: nn.Module, error: Exception) -> SpecError:
    operator = getattr(error, "func", None)
    what = f"the operator {operator}" if operator is not None else str(error).splitlines()[0]
    return SpecError(
        f"model.{type(module).__name__}",
        f"it needs values that it does not have: {what}",
        "a model on the meta device has shapes alone (models/tracing.py)",
        "build it with values at a small size, or give the operator a fake implementation "
        "(torch.library.register_fake)",
    )


def _element_bytes(run: Run, module: nn.Module) -> int:
    """The element size of what the largest product writes, else that of the parameters."""
    products = [e for e in run.events if e.product and e.kind in ("matmul", "convolution")]
    heaviest = max(products, key=lambda e: e.sizes["flops"], default=None)
    if heaviest is not None and heaviest.positions:
        return max(heaviest.sizes["written_bytes"] // heaviest.positions, 1)
    return next((p.element_size() for p in module.parameters() if p.is_floating_point()), 4)
