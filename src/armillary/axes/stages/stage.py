"""One stage of a pipeline: the model's own forward, in which other stages' blocks are absent."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from armillary.axes.stages.absent import (
    Known,
    Meta,
    absent,
    absent_class,
    emptied,
    is_absent,
    shallow,
    tensor_leaves,
)
from armillary.axes.stages.balance import Stages
from armillary.spec import ModelGraph, SpecError

if TYPE_CHECKING:
    import torch
    from torch import nn

Outputs = dict[str, list[Any]]  # by path, of every call, with tensors as their `Meta`


class _ReachedError(Exception):
    """The forward has come to the first block of the next stage, with these arguments."""

    def __init__(self, taken: Any) -> None:
        super().__init__()
        self.taken = taken


class Part:
    """Stage `index` of a model: `module` runs it.

    The first stage is called with the model's own arguments, the others with the tensors that
    came in and `inputs`, the model's own (args, kwargs). A call hands out a tuple of tensors: those
    that cross to the next stage, or those of the model's output, which is then `result`.
    `outputs` says what absent modules hand on, in shape, for the inputs of the next call.
    """

    def __init__(
        self,
        module: "nn.Module",
        graph: ModelGraph,
        stages: Stages,
        index: int,
        device: "torch.device",
    ) -> None:
        self.index, self.graph, self.stages, self.device = index, graph, stages, device
        first, end = stages.bounds[index : index + 2]
        self.own = set(graph.chain[first:end])
        self.is_last = end == len(graph.chain)
        self.entry = graph.chain[first] if index else ""
        self.stop = "" if self.is_last else graph.chain[end]
        self.taken = graph.crossings[first] if index else ()
        self.handed = () if self.is_last else graph.crossings[end]
        self.known = Known()
        self.waiting: tuple[Any, ...] = ()
        self.calls: dict[str, int] = {}
        self.outputs: Outputs = {}
        self.records: Outputs | None = None
        self.result: Any = None
        self.is_hooked = False
        self.module = self._cut(module, held_by(module, graph, stages))
        self.module.forward = self._forward
        self._run = functools.partial(type(module).forward, self.module)

    # ---------------------------------------------------------------------------- cutting
    def _cut(self, module: "nn.Module", held: Mapping[int, list[int]]) -> "nn.Module":
        made: dict[int, nn.Module] = {}

        def cut(part: "nn.Module", path: str) -> "nn.Module":
            if id(part) not in made:
                made[id(part)] = self._cut_one(part, path, held, cut)
            return made[id(part)]

        return cut(module, "")

    def _cut_one(
        self,
        part: "nn.Module",
        path: str,
        held: Mapping[int, list[int]],
        cut: "Callable[[nn.Module, str], nn.Module]",
    ) -> "nn.Module":
        chain = self.graph.chain
        if path in chain:
            return part if path in self.own else self._emptied(part, path)
        if not _holds_a_block(path, chain):
            holders = {stage for p in part.parameters() for stage in held[id(p)]}
            return part if not holders or self.index in holders else self._emptied(part, path)
        copy = shallow(part)
        for name, child in part.named_children():
            copy._modules[name] = cut(child, f"{path}.{name}" if path else name)
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and self.index not in held[id(parameter)]:
                del copy._parameters[name]
                meta = Meta(tuple(parameter.shape), parameter.dtype)
                copy.__dict__[name] = absent(meta, self.device, self.known)
        return copy

    def _emptied(self, part: "nn.Module", path: str) -> "nn.Module":
        return emptied(part, functools.partial(self._skip, path), self.device, self.known)

    # ---------------------------------------------------------------------------- running
    def _forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self._hook()
        inputs = kwargs["inputs"] if self.index else (args, kwargs)
        self.known.found.clear()
        self.calls.clear()
        self.waiting = args if self.index else ()
        try:
            result = self._run(*inputs[0], **inputs[1])
        except _ReachedError as reached:
            return self._handed_on(reached.taken)
        if not self.is_last:
            raise _strayed(f"its forward ended before {self.stop}")
        self.result = self._resolved(result, "the model's output")
        return tuple(tensor_leaves(self.result))

    def _handed_on(self, taken: Any) -> tuple[Any, ...]:
        leaves = list(tensor_leaves(taken))
        if self.handed and max(self.handed) >= len(leaves):
            raise _strayed(f"{self.stop} takes fewer tensors than when the model was read")
        return tuple(self._resolved(leaves[i], self.stop) for i in self.handed)

    def _skip(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """The forward of an absent module: what it hands on, in shape."""
        from torch.utils._pytree import tree_map_only

        if path == self.stop:
            raise _ReachedError((args, kwargs))
        index = self.calls.get(path, 0)
        self.calls[path] = index + 1
        if index >= len(self.outputs.get(path, ())):
            raise _strayed(f"{path} is called on stage {self.index} alone")
        known = self.outputs[path][index]
        return tree_map_only(Meta, lambda meta: absent(meta, self.device, self.known), known)

    def _enter(self, path: str, block: "nn.Module", args: Any, kwargs: Any) -> Any:
        """A forward pre-hook of an own block: what came in takes the place of absent tensors."""
        leaves = list(tensor_leaves((args, kwargs)))
        if not any(is_absent(leaf) for leaf in leaves):
            return None
        if path == self.entry:
            for i, tensor in zip(self.taken, self.waiting, strict=True):
                if i < len(leaves) and is_absent(leaves[i]):
                    self.known.add(leaves[i], tensor)
        return self._resolved((args, kwargs), path)

    def _resolved(self, values: Any, what: str) -> Any:
        from torch.utils._pytree import tree_map_only

        found = tree_map_only(absent_class(), self.known.get, values)
        if any(is_absent(leaf) for leaf in tensor_leaves(found)):
            raise _strayed(f"{what} takes a tensor that only another stage knows")
        return found

    # -------------------------------------------------------------------------- recording
    def _hook(self) -> None:
        """Hooks on what is run here, once, before those of torch's FSDP."""
        if self.is_hooked:
            return
        self.is_hooked = True
        for path, part in self.module.named_modules():
            if path in self.own and self.index:
                enter = functools.partial(self._enter, path)
                part.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
            if path in self.own or is_unit(self.module, path, self.graph.chain):
                part.register_forward_hook(functools.partial(self._record, path))

    def _record(self, path: str, part: "nn.Module", args: Any, output: Any) -> None:
        import torch
        from torch.utils._pytree import tree_map_only

        if self.records is None:
            return
        index = self.calls.get(path, 0)
        self.calls[path] = index + 1
        if index >= len(self.records.setdefault(path, [])):
            meta = tree_map_only(torch.Tensor, lambda t: Meta(tuple(t.shape), t.dtype), output)
            self.records[path].append(meta)


def held_by(module: "nn.Module", graph: ModelGraph, stages: Stages) -> dict[int, list[int]]:
    """The stages that hold each parameter outside the blocks, by its id."""
    glue = {g.path: stages.holders(g.regions) for g in graph.glue}
    return {id(p): glue[path] for path, p in module.named_parameters() if path in glue}


def _holds_a_block(path: str, chain: tuple[str, ...]) -> bool:
    return not path or any(block.startswith(f"{path}.") for block in chain)


def is_unit(module: "nn.Module", path: str, chain: tuple[str, ...]) -> bool:
    """Whether the module at `path` is one of the largest that hold no block."""
    if not path or path in chain or _holds_a_block(path, chain):
        return False
    above = path.rpartition(".")[0]
    return above not in chain and _holds_a_block(above, chain)


def _strayed(what: str) -> SpecError:
    return SpecError(
        "layout.pipeline",
        what,
        "a stage computes what the model computed when it was read (axes/stages/stage.py)",
        "make the forward the same for all batches, or use pipeline=1",
    )
