"""A module read for its parameters, its repeated blocks, and what may be cut where."""

from collections import Counter
from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from armillary.models.chain import find_chain
from armillary.models.positions import find_positions
from armillary.models.routed import find_routed
from armillary.models.splits import find_splits
from armillary.models.sums import count_sums
from armillary.models.watch import Call, Seen, watch
from armillary.spec import Block, ModelGraph


def read(module: nn.Module, call: Call | None = None, num_samples: int = 1) -> ModelGraph:
    """`module` as numbers: bytes of its parameters, the blocks that repeat in it, and its cuts.

    A block is a child of a `ModuleList` or `Sequential` that has a sibling of its own class, holds
    parameters, and shares none of them with the rest of the model. `call` runs the model forward
    on `num_samples` samples; without it nothing is known of activations, attentions and cuts.
    """
    seen = watch(module, call, num_samples) if call else Seen()
    num_parameters, parameter_bytes = _weigh(module.parameters())
    blocks = tuple(_blocks(module, _count_uses(module), seen))
    found = find_chain(module, [block.path for block in blocks], call, num_samples)
    splits, unsplit = find_splits(module, call, num_samples, [block.path for block in blocks])
    return ModelGraph(
        name=type(module).__name__,
        num_parameters=num_parameters,
        parameter_bytes=parameter_bytes,
        num_tensors=len(set(module.parameters())),
        blocks=blocks,
        chain=found.chain,
        uncut=found.uncut,
        crossings=found.crossings,
        crossing_bytes=found.crossing_bytes,
        wide_crossings=found.wide_crossings,
        wide_bytes=found.wide_bytes,
        chain_flops=found.chain_flops,
        glue=found.glue,
        has_batch_norm=any(isinstance(part, _BatchNorm) for part in module.modules()),
        batch_norms={
            path: part.num_features
            for path, part in module.named_modules()
            if isinstance(part, _BatchNorm)
        },
        attentions=tuple(seen.attentions),
        sums=count_sums(seen.sums),
        splits=splits,
        unsplit=unsplit,
        routed=find_routed(module, seen),
        positions=find_positions(module, seen),
        recurrent=_paths(module, nn.RNNBase),
        convolutions=_paths(module, _ConvNd),
        tied=_tied(module),
    )


def block_paths(module: nn.Module) -> list[str]:
    """The paths of the blocks that repeat in `module`, in the order of their names."""
    return [block.path for block in _blocks(module, _count_uses(module), Seen())]


def _weigh(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    unique = list(dict.fromkeys(parameters))
    return sum(p.numel() for p in unique), sum(p.numel() * p.element_size() for p in unique)


def _count_uses(module: nn.Module) -> Counter[nn.Parameter]:
    return Counter(p for _, p in module.named_parameters(remove_duplicate=False))


def _paths(module: nn.Module, kind: type) -> tuple[str, ...]:
    return tuple(path for path, part in module.named_modules() if isinstance(part, kind))


def _tied(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Groups of paths that name one parameter."""
    groups: dict[nn.Parameter, list[str]] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(parameter, []).append(path)
    return tuple(tuple(paths) for paths in groups.values() if len(paths) > 1)


def _blocks(
    module: nn.Module, uses: Counter[nn.Parameter], seen: Seen, prefix: str = ""
) -> Iterable[Block]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        inside = _count_uses(child)
        shares_none = all(uses[parameter] == count for parameter, count in inside.items())
        if _repeats(child, module) and shares_none:
            num_parameters, parameter_bytes = _weigh(child.parameters())
            yield Block(
                path=path,
                num_parameters=num_parameters,
                parameter_bytes=parameter_bytes,
                activation_bytes=seen.output_bytes.get(path, 0),
            )
        else:
            yield from _blocks(child, uses, seen, f"{path}.")


def _repeats(child: nn.Module, parent: nn.Module) -> bool:
    """Whether `child` is one of a chain: a composite module with a sibling of its own class."""
    if not isinstance(parent, (nn.ModuleList, nn.Sequential)) or not any(child.children()):
        return False
    siblings = [other for other in parent.children() if type(other) is type(child)]
    has_parameters = any(True for _ in child.parameters())
    return has_parameters and len(siblings) > 1 and not isinstance(child, nn.ModuleList)
