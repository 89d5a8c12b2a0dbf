"""The program of one rank, as `train` would build it, on tensors that have shapes and no values."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import tree_map_only
from torch.utils.data import default_collate

from armillary.axes import admit, discover
from armillary.axes.batch.routed import EXCHANGE
from armillary.axes.door import parts
from armillary.axes.stages.foreseen import Whole, seeing
from armillary.feeds import Share
from armillary.models import Call
from armillary.rehearse.program.repeats import equal_runs, left_out, read_folded
from armillary.rehearse.program.shortened import Short, Shortening
from armillary.rehearse.program.watching import refusal_of
from armillary.rehearse.program.world import CPU, coordinates
from armillary.spec import Layout, ModelGraph, TrainSettings
from armillary.step.build import give_memory
from armillary.step.parallel import make_parallel, to_device
from armillary.step.precision import Precision
from armillary.step.recipe import Recipe
from armillary.step.world import World, with_micro_batches

META = torch.device("meta")
NUM_EXAMPLES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A recipe with one of its layouts, and how the samples of a step fall to its ranks.

    `sizes` are the samples of every micro batch of one rank.
    """

    recipe: Recipe
    layout: Layout
    settings: TrainSettings
    sizes: tuple[int, ...]
    samples: Any

    @classmethod
    def of(cls, recipe: Recipe, layout: Layout, global_batch_size: int, rank: int = 0) -> "Case":
        """The case of a step over `global_batch_size` samples, or the recipe's own if 0."""
        settings = TrainSettings.from_dict(dict(recipe.defaults), f"{recipe.name}.settings")
        batch_size = global_batch_size or settings.global_batch_size
        layout = with_micro_batches(replace(layout, compile=False), batch_size)
        index, count = batch_place(layout, rank)
        share = Share(index=index, count=count, micro_batch_size=layout.micro_batch_size)
        return cls(
            recipe=recipe,
            layout=layout,
            settings=replace(settings, global_batch_size=batch_size),
            sizes=tuple(len(part) or 1 for part in share.micro_batches(0, batch_size)),
            samples=_train_split(_Same(recipe)),
        )

    def batch(self, num_samples: int) -> Any:
        """A batch of so many samples, in the layout's precision."""
        samples = [self.samples[i % len(self.samples)] for i in range(num_samples)]
        collate = self.recipe.find("collate") or default_collate
        return to_device(collate(samples), CPU, Precision(self.layout, CPU).dtype)

    def build(self) -> nn.Module:
        """The recipe's module without memory; one that looks at its values is built with."""
        try:
            with META:
                module = self.recipe.model()
        except (NotImplementedError, RuntimeError, TypeError, ValueError):
            module = self.recipe.model()
        return module.to(device=META, dtype=Precision(self.layout, CPU).dtype).train()

    def read(self) -> ModelGraph:
        """The graph of the recipe's module, as every axis may need it.

        Raises: `SpecError` if the forward pass or the loss looks at values.
        """
        return _graph(_Same(self.recipe), self.layout.precision)


class _Same:
    """A recipe, equal to itself alone."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __hash__(self) -> int:
        return id(self.recipe)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.recipe is self.recipe


@lru_cache(maxsize=1)
def _train_split(same: _Same) -> Any:
    """The samples of a recipe, made once for all of its ranks."""
    return same.recipe.data()["train"]


@lru_cache(maxsize=1)
def _graph(same: _Same, precision: str) -> ModelGraph:
    """The graph of a recipe's module, read once for all ranks."""
    case = Case.of(same.recipe, Layout(precision=precision), 0)
    module = case.build()
    batch = tree_map_only(torch.Tensor, lambda t: t.to(META), case.batch(NUM_EXAMPLES))
    call: Call = lambda model: same.recipe.loss(model, batch)  # noqa: E731
    with META:
        found: ModelGraph = refusing_values(lambda: read_folded(module, call, NUM_EXAMPLES))
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """One rank's module with its graph, the runs of its equal blocks, and a batch without values.

    `whole` is what the stages of a model that drives its steps must know of each other; `shorts`
    are runs of which the module has only a part.
    """

    case: Case
    world: World
    module: nn.Module
    graph: ModelGraph
    runs: list[list[str]]
    batches: dict[int, Any]
    whole: Whole | None
    shorts: tuple[Short, ...]


class Folding(Enum):
    """How far equal blocks stand for each other: most are not built, are not run, or all are."""

    SHORT, STAND_IN, NONE = range(3)


def build(
    case: Case, graph: ModelGraph, world: World, fake: FakeTensorMode, folding: Folding
) -> Program:
    """The program of this rank of `world`; `graph` is the model's.

    Raises: `SpecError` if an axis refuses the model.
    """
    module = case.build()
    runs = equal_runs(module)
    batches = {size: _without_values(case.batch(size), fake) for size in {*case.sizes}}
    whole = None
    if _is_cut(case.layout):
        admit(case.layout, graph, num_micro_batches=len(case.sizes))
        whole = _see(case, module, graph, runs, batches[max(case.sizes)], fake)
    shortening = Shortening(runs if folding is Folding.SHORT else ())
    module = make_parallel(module, graph, world, case.layout, once_cut=shortening)
    with fake:
        give_memory(module, world.device)
    return Program(
        case=case,
        world=world,
        module=module,
        graph=graph,
        runs=runs,
        batches=batches,
        whole=whole,
        shorts=tuple(shortening.shorts),
    )


def batch_place(layout: Layout, rank: int) -> tuple[int, int]:
    """Which part of every batch `rank` computes, and of how many, as `step.world` counts them."""
    index, count = 0, 1
    for axis, at in coordinates(layout, rank).items():
        if discover()[axis].splits_batch:
            index, count = index * layout.degrees[axis] + at, count * layout.degrees[axis]
    return index, count


def _is_cut(layout: Layout) -> bool:
    """Whether the ranks of `layout` hold other parts of the module."""
    axes = discover()
    return any(axes[n].splits_module for n, degree in layout.degrees.items() if degree > 1)


def _without_values(batch: Any, fake: FakeTensorMode) -> Any:
    return tree_map_only(torch.Tensor, fake.from_tensor, batch)


def _see(
    case: Case,
    module: nn.Module,
    graph: ModelGraph,
    runs: list[list[str]],
    batch: Any,
    fake: FakeTensorMode,
) -> Whole:
    """What blocks and units hand each other in a pass of the whole model over one micro batch."""
    repeated = [run for run in runs if len(run) > 3]
    alike = {run[1]: run[2:-1] for run in repeated}
    with fake, left_out(module, repeated), seeing(module, graph.chain, alike) as seen:
        tensors = {
            name: torch.empty_like(tensor, device=CPU)
            for name, tensor in [
                *module.named_parameters(remove_duplicate=False),
                *module.named_buffers(remove_duplicate=False),
            ]
        }
        autocast = Precision(case.layout, CPU).autocast()
        with _reparametrize_module(module, tensors), torch.no_grad(), autocast:
            refusing_values(lambda: case.recipe.loss(module, batch))
    return seen


def refusing_values(run: Callable[[], Any]) -> Any:
    """What `run` gives.

    Raises: `SpecError` in place of what torch raises where values are looked at.
    """
    try:
        return run()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        raise refusal from error


def load_experts(program: Program, load: float) -> None:
    """Have `load` rows come to the experts of this rank for each of an even share, or as many as
    they take.
    """
    for part in parts(program.module):
        for module in part.modules():
            if EXCHANGE in module.__dict__:
                most = getattr(module, "capacity_factor", None) or load
                module.__dict__[EXCHANGE].load = min(load, max(1.0, most))
