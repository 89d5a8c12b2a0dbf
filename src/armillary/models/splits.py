"""Which parameters may be cut so that several ranks share the work between them.

Each linear map is tried as the begin of a region: its output is cut by features, and the cut is
carried through the operations of one real call. Where another linear map takes what is cut the
region ends, and the pair is split: the first by what it puts out, the second by what it takes in.
What meets a cut on the way (attention by heads, norms by groups, products of two cut tensors)
joins regions and says which units stay whole. A region that meets what needs all of it is not
split.

Source: Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053, for the pairs; Xu et al. 2021,
"GSPMD", arXiv 2105.04663, for carrying a cut through the operations of a program.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn
from torch.nn.modules.conv import _ConvNd

from armillary.models.kept import find_last
from armillary.models.named_splits import with_named
from armillary.models.operations import note
from armillary.models.region import Hints, Region, Use
from armillary.models.search import Search
from armillary.models.watch import Call
from armillary.spec import Split

UNSPLIT_RECURRENT = (
    "its hidden state would be gathered from all ranks at every time step, which on two ranks took "
    "1.1 to 32 times as long as data=2 (docs/axes.md)"
)


def find_splits(
    module: nn.Module, call: Call | None, num_samples: int = 1, blocks: Sequence[str] = ()
) -> tuple[tuple[Split, ...], Mapping[str, str]]:
    """The parameters of `module` that may be cut, and why other modules cannot, by path.

    `call` runs the model forward on `num_samples` samples; without it nothing is known. What is
    handed from one of the `blocks` to another stays whole.
    """
    if call is None:
        return (), {}
    operations = note(module, call)
    hints = Hints()
    while True:
        search = Search(operations, hints, blocks)
        search.run()
        if not any(region.fault for region in search.regions):
            break
        hints.learn(search.regions)
    sizes = {path: p.numel() * p.element_size() for path, p in module.named_parameters()}
    last = find_last(operations, blocks)
    splits = tuple(
        replace(
            _split(path, use, region, 0 if region.shares else sizes[path], num_samples),
            ends_block=use.kind == "row" and path in last,
        )
        for region in [*search.regions, *search.positions.values()]
        for path, use in region.uses.items()
    )
    splits = with_named(module, splits)
    return splits, _unsplit(module, {split.path for split in splits}, hints.refused)


def _split(path: str, use: Use, region: Region, num_bytes: int, num_samples: int) -> Split:
    def mean(sizes: list[int]) -> int:
        return sum(sizes) // len(sizes) // num_samples if sizes else 0

    return Split(
        path=path,
        region=next(iter(region.uses)).rpartition(".")[0],
        kind=use.kind,
        dim=use.dim,
        num_units=region.num_units,
        unit=region.unit,
        parameter_bytes=num_bytes,
        activation_bytes=mean(use.sent),
        exchanged_bytes=mean(use.exchanged),
        num_calls=max(len(use.sent), len(use.exchanged)),
        num_pieces=use.num_pieces,
        num_tokens=use.num_tokens,
    )


def _unsplit(module: nn.Module, split: set[str], refused: Mapping[str, str]) -> dict[str, str]:
    """Why modules that could be split as a kind are not, by path."""
    reasons = {path.rpartition(".")[0]: reason for path, reason in refused.items()}
    names = {parameter: name for name, parameter in module.named_parameters()}
    for path, part in module.named_modules():
        own = {names[parameter] for parameter in part.parameters()}
        if isinstance(part, nn.RNNBase):
            reasons[path] = UNSPLIT_RECURRENT
        elif isinstance(part, (nn.Linear, _ConvNd)) and path not in reasons and not own & split:
            reasons[path] = "nothing that it takes or puts out can be cut"
    return reasons
