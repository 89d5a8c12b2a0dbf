"""The equal blocks of a model: found by what they are made of, read once, told for all.

A run is blocks that follow one another and are equal in class, sizes and settings. To read the
graph of a model of a hundred layers, three blocks of a run are enough: the others only hand on what
they are given, and are put into the graph as the second of them.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from armillary.models import Call, read
from armillary.models.reading import block_paths
from armillary.spec import Glue, ModelGraph

NUM_READ = 3
"""Blocks of a run that are read: the first and the last have other neighbours than the second."""
PLAIN = (bool, int, float, str, type(None), tuple)
OWN = ("training", "_is_full_backward_hook", "call_super_init", "dump_patches")
Entry = TypeVar("Entry")


class CannotFold(Exception):
    """Blocks that were taken to be equal do not do the same: more of them are to be run."""


def equal_runs(module: nn.Module) -> list[list[str]]:
    """The paths of the blocks of `module` in runs of equal ones, in order."""
    runs: list[list[str]] = []
    before: Any = None
    for path in block_paths(module):
        kind = path.rpartition(".")[0], made_of(module.get_submodule(path))
        if runs and kind == before:
            runs[-1].append(path)
        else:
            runs.append([path])
        before = kind
    return runs


def made_of(block: nn.Module) -> Any:
    """What a block computes with: classes, settings, and the sizes of its tensors."""
    return tuple(
        (path, type(part), part.extra_repr(), _settings(part), _sizes(part))
        for path, part in block.named_modules(remove_duplicate=False)
    )


def _settings(part: nn.Module) -> Any:
    found = {n: v for n, v in vars(part).items() if isinstance(v, PLAIN) and n not in OWN}
    return tuple(sorted((name, repr(value)) for name, value in found.items()))


def _sizes(part: nn.Module) -> Any:
    tensors = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
    return tuple((n, tuple(t.shape), t.dtype, t.requires_grad) for n, t in tensors)


def read_folded(module: nn.Module, call: Call | None, num_samples: int) -> ModelGraph:
    """As `models.read`, with the equal blocks of a run read once."""
    return read_without(module, call, num_samples, ())[0]


def read_without(
    module: nn.Module, call: Call | None, num_samples: int, paths: Collection[str]
) -> tuple[ModelGraph, ModelGraph]:
    """The same, and beside it the graph without the blocks at `paths`, of runs of equal ones."""
    runs = [run for run in equal_runs(module) if len(run) > NUM_READ]
    if call is None or not runs:
        graph = read(module, call, num_samples)
        assert not paths
        return graph, graph
    with left_out(module, runs):
        graph = read(module, call, num_samples)
    repeats = {run[1]: run[2:-1] for run in runs}
    kept = {first: [p for p in others if p not in paths] for first, others in repeats.items()}
    return unfold(graph, repeats, module), unfold(graph, kept, module)


@contextlib.contextmanager
def left_out(module: nn.Module, runs: Sequence[Sequence[str]]) -> Iterator[None]:
    """Of every run all blocks but three hand on what they take, as the second hands it out."""
    kept: list[tuple[nn.Module, str, nn.Module]] = []
    hooks = []
    for run in runs:
        left_out = _HandsOn()
        hooks.append(module.get_submodule(run[1]).register_forward_hook(left_out.look))
        for path in run[2:-1]:
            above, _, name = path.rpartition(".")
            owner = module.get_submodule(above)
            kept.append((owner, name, owner.get_submodule(name)))
            owner._modules[name] = left_out
    try:
        yield
    finally:
        for owner, name, block in kept:
            owner._modules[name] = block
        for hook in hooks:
            hook.remove()


class _HandsOn(nn.Module):
    """A block left out: what comes in goes out, and beside it tensors like those of another."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: Any = None

    def look(self, block: nn.Module, args: Any, output: Any) -> None:
        """Note what the other hands out."""
        self.handed = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        waiting = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]

        def handed(tensor: torch.Tensor) -> torch.Tensor:
            for i, taken in enumerate(waiting):
                if (taken.shape, taken.dtype) == (tensor.shape, tensor.dtype):
                    return waiting.pop(i)
            return torch.empty_like(tensor)

        return tree_map_only(torch.Tensor, handed, self.handed)


def unfold(graph: ModelGraph, repeats: dict[str, list[str]], module: nn.Module) -> ModelGraph:
    """`graph` with the blocks at `repeats[path]` put in after the block at `path`, as it is.

    `module` is what the graph is of, whole.
    """

    def told(entries: Iterable[Entry], path_of: Callable[[Entry], str], *names: str) -> Any:
        """`entries`, and behind those of a block the same for its repeats."""
        found: list[Entry] = []
        waiting: list[Entry] = []
        inside = ""
        for entry in entries:
            now = _block_of(path_of(entry), repeats)
            if now != inside:
                found += _moved(waiting, inside, repeats.get(inside, ()), names)
                waiting, inside = [], now
            found.append(entry)
            waiting += [entry] if now else []
        return tuple(found + _moved(waiting, inside, repeats.get(inside, ()), names))

    def by_path(entry: Any) -> str:
        return str(entry.path)

    unique = list(dict.fromkeys(module.parameters()))
    norms = told(graph.batch_norms.items(), lambda item: item[0])
    unsplit = told(graph.unsplit.items(), lambda item: item[0])
    stencils = told(graph.positions.stencils, by_path, "path")
    return replace(
        _with_chain(graph, repeats),
        num_parameters=sum(p.numel() for p in unique),
        parameter_bytes=sum(p.numel() * p.element_size() for p in unique),
        num_tensors=len(unique),
        blocks=told(graph.blocks, by_path, "path"),
        splits=told(graph.splits, by_path, "path", "region"),
        attentions=told(graph.attentions, by_path, "path"),
        routed=told(graph.routed, by_path, "path"),
        sums=told(graph.sums, by_path, "path"),
        recurrent=told(graph.recurrent, str),
        convolutions=told(graph.convolutions, str),
        batch_norms=dict(norms),
        unsplit=dict(unsplit),
        positions=replace(graph.positions, stencils=stencils),
    )


def _block_of(path: str, repeats: dict[str, list[str]]) -> str:
    """The block with repeats that the module at `path` lies in, or ""."""
    for block in repeats:
        if f"{path}.".startswith(f"{block}."):
            return block
    return ""


def _moved(entries: Sequence[Any], block: str, others: Sequence[str], names: Any) -> list[Any]:
    """`entries` of `block` as they are in each of `others`, which stand in the fields `names`."""

    word = re.compile(rf"{re.escape(block)}(?![\w])")

    def renamed(text: str, other: str) -> str:
        return other + text[len(block) :] if f"{text}.".startswith(f"{block}.") else text

    def moved(entry: Any, other: str) -> Any:
        if isinstance(entry, str):
            return renamed(entry, other)
        if isinstance(entry, tuple):
            path, told = entry
            said = told if isinstance(told, int) else word.sub(other, told)
            return renamed(path, other), said
        return replace(entry, **{name: renamed(getattr(entry, name), other) for name in names})

    return [moved(entry, other) for other in others for entry in entries]


def _with_chain(graph: ModelGraph, repeats: dict[str, list[str]]) -> ModelGraph:
    """`graph` with its chain and what is told by its places unfolded."""
    if not graph.chain:
        return graph
    times = [1 + len(repeats.get(path, ())) for path in graph.chain]
    ends = [sum(times[:k]) for k in range(len(times) + 1)]  # by region: the blocks before it

    def each(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(v for v, n in zip(values, times, strict=True) for _ in range(n))

    flops = graph.chain_flops
    return replace(
        graph,
        chain=tuple(p for path in graph.chain for p in (path, *repeats.get(path, ()))),
        crossings=each(graph.crossings),
        crossing_bytes=each(graph.crossing_bytes),
        wide_crossings=each(graph.wide_crossings),
        wide_bytes=each(graph.wide_bytes),
        chain_flops=(flops[0], *each(flops[1:])) if len(flops) == len(times) + 1 else flops,
        glue=tuple(
            Glue(
                path=glue.path,
                parameter_bytes=glue.parameter_bytes,
                regions=tuple(ends[region] for region in glue.regions),
            )
            for glue in graph.glue
        ),
    )
