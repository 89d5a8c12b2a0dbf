"""The tensor axis: ranks share each pair of linear maps, by heads, features, channels or words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from armillary.axes.attention.calls import attend_in_parts
from armillary.axes.batch.times import num_calls, sent_again
from armillary.axes.compose import compute_in
from armillary.axes.door import Part, Refusal, Shares, Transfer, part_of, parts, refuse
from armillary.axes.regions.convolution import pad_inside
from armillary.axes.regions.messages import (
    STAYS_WHOLE,
    WORDS,
    common_units,
    edges,
    is_cut,
    keeps_words,
    summed_gradients,
)
from armillary.axes.regions.mode import Cut, Regions, gather_output
from armillary.axes.spmd import flow, place
from armillary.spec import Layout, ModelGraph, Op, Split
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import DeviceMesh

NORMS = "tensor.norms"
NUM_REASONS = 3
RULE = "whole {unit} stay on one rank (axes/tensor.py)"


class Tensor:
    """Pairs of maps: the first is cut by what it puts out, the second by what it takes in.

    Between pairs the activations are whole on every rank, or with `norms=cut` cut by tokens. The
    logits are made whole where the model puts them out; with `loss=vocabulary`, and in a pipeline,
    they stay cut by words, which costs `torch.nn.functional.cross_entropy` three numbers a token.
    Words that the degree does not divide stay whole.

    Source: Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053; for `norms=cut` Korthikanti et al.
    2022, "Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198.
    """

    name = "tensor"
    borrows: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = {
        "norms": ("whole", "cut"),
        "loss": ("whole", "vocabulary"),
    }
    order = 5
    splits_batch = False
    splits_module = False
    shares_parameters = True
    sees_calls = True

    def admits(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Refusal]:
        refusals = [self._refuse_uneven(graph, layouts, unit) for unit in _units(graph)]
        refusals += self._refuse_tokens(graph, layouts)
        always = np.ones(layouts.num_layouts, dtype=bool)
        if not any(_counts(split) for split in graph.splits):
            refusals.append(
                refuse(
                    self.name,
                    layouts,
                    always,
                    f"degree {{degree}} for {graph.name}, of which nothing can be split"
                    f"{_reasons(graph)}",
                    "a pair of linear maps or convolutions, joined by what acts on each feature, "
                    "channel or head alone, is split (axes/tensor.py)",
                    "use tensor=1",
                )
            )
        return refusals

    def _refuse_uneven(
        self, graph: ModelGraph, layouts: Layouts, unit: tuple[str, int, str]
    ) -> Refusal:
        name, number, region = unit
        common = common_units(graph)
        degrees = [d for d in range(1, common + 1) if common % d == 0]
        return refuse(
            self.name,
            layouts,
            number % layouts.degree(self.name) != 0,
            f"degree {{degree}} does not divide {name} {number} of {region}",
            RULE.format(unit=name.removeprefix("num_").replace("_", " ")),
            f"use one of {', '.join(map(str, degrees))}",
        )

    def _refuse_tokens(self, graph: ModelGraph, layouts: Layouts) -> Iterator[Refusal]:
        """Norms on a part of the tokens: from the embedding on, all that flows has tokens."""
        degrees = layouts.degree(self.name)
        wants = layouts.option(NORMS, "whole") == "cut"
        begins = np.zeros(layouts.num_layouts, dtype=bool)
        for split in graph.splits:
            begins |= (split.kind == "vocabulary") & is_cut(split, degrees)
            if not split.activation_bytes:
                continue
            yield refuse(
                self.name,
                layouts,
                wants & ((split.num_tokens == 0) | (max(split.num_tokens, 1) % degrees != 0)),
                f"norms=cut at degree {{degree}} with {split.num_tokens or 'no'} tokens in what "
                f"{split.path} takes or puts out",
                "every rank norms equally many tokens of [samples, tokens, features] "
                "(axes/tensor.py)",
                "use tensor.norms=whole",
            )
        yield refuse(
            self.name,
            layouts,
            wants & (layouts.degree("sequence") > 1),
            "norms=cut at degree {degree} beside the sequence axis",
            "tokens are cut along one axis (axes/tensor.py)",
            "use tensor.norms=whole, or sequence=1",
        )
        yield refuse(
            self.name,
            layouts,
            wants & ~begins,
            f"norms=cut at degree {{degree}} for {graph.name}, whose tokens come in whole",
            "tokens are cut where an embedding is cut by words (axes/tensor.py)",
            "use tensor.norms=whole, or a number of words that the degree divides",
        )

    def divides(self, graph: ModelGraph, layouts: Layouts) -> Shares:
        degrees = layouts.degree(self.name)
        held = np.full(layouts.num_layouts, float(graph.parameter_bytes))
        for split in graph.splits:
            held -= np.where(is_cut(split, degrees), _held(split, graph) * (1 - 1 / degrees), 0.0)
        share = held / max(graph.parameter_bytes, 1)
        return Shares(
            parameters=share,
            gradients=share,
            optimizer_state=share,
            samples=np.ones(layouts.num_layouts),
        )

    def computes(self, op: Op, layouts: Layouts) -> Part | None:
        degrees = layouts.degree(self.name)
        if not op.cut:  # norms and what else is whole, of which each rank may have its tokens
            cuts_norms = layouts.option(NORMS, "whole") == "cut"
            return part_of(layouts, rows=np.where(cuts_norms & op.tokens, 1.0 / degrees, 1.0))
        if op.cut == "all":
            return part_of(layouts, rows=1.0 / degrees)
        size = "columns" if op.cut == "words" else op.cut
        units = op.heads if op.kind == "attention" else getattr(op, size)
        share = np.where((units % degrees == 0) | (units == 0), 1.0 / degrees, 1.0)
        return part_of(layouts, **{size: share, "parameters": share})

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        """What crosses the edges of regions, forward and backward, once a call."""
        calls = num_calls(layouts)
        last = {split.path for split in graph.splits if split.ends_block}
        found = []
        for path, collective, size, times, phase, is_wide in edges(graph, layouts):
            sent = self._sent(path, collective, size, times * calls, phase, is_wide)
            is_again = phase == "forward" and path not in last
            found += sent_again(sent, graph, layouts) if is_again else [sent]
        for message in summed_gradients(graph, layouts):
            found.append(replace(self._sent(*message), carries="gradients"))
        return found

    def _sent(
        self,
        path: str,
        collective: str,
        size: NDArray[np.float64],
        times: NDArray[np.float64],
        phase: str,
        is_wide: bool,
    ) -> Transfer:
        return Transfer(
            collective=collective,
            group=(self.name,),
            bytes=size,
            per_step=times,
            hidden_behind=phase,
            path=path,
            is_wide=is_wide,
        )

    def apply(
        self, module: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
    ) -> "nn.Module":
        """`module` with its parameters to be cut, and the context in which it computes."""
        from torch.distributed.tensor import Replicate, Shard

        degree = layout.degree(self.name)
        splits = [s for s in graph.splits if is_cut(s, np.array(degree))]
        cuts_tokens = layout.options.get(NORMS, "whole") == "cut"
        for part in parts(module):
            flow(part, self.name, Shard(1) if cuts_tokens else Replicate())
            held = dict(part.named_parameters(remove_duplicate=False))
            for split in splits:
                for path in _names(split.path, graph):
                    if path in held:
                        place(part, self.name, path, Shard(split.dim))
            lengths = [
                (len(held[s.path]), s.num_pieces) for s in splits if s.num_pieces and s.path in held
            ]
            regions = Regions(self.name, cuts_tokens, frozenset(lengths))
            compute_in(part, regions)
            attend_in_parts(part)
            pad_inside(part, Cut(regions))
            if not keeps_words(Layouts.of(layout)).all():
                part.register_forward_hook(partial(gather_output, regions))
        return module


def _units(graph: ModelGraph) -> Iterator[tuple[str, int, str]]:
    """Every kind and number of units that a degree must divide, with a region that has them."""
    known = set()
    for split in graph.splits:
        unit = (split.unit, split.num_units)
        if _counts(split) and unit not in known:
            known.add(unit)
            yield *unit, split.region


def _counts(split: Split) -> bool:
    """Whether a degree must divide the units."""
    return split.kind not in (*WORDS, *STAYS_WHOLE)


def _held(split: Split, graph: ModelGraph) -> float:
    """Bytes of the parameter, in all blocks that are equal to its own."""
    return float(split.parameter_bytes * graph.times(split.path))


def _names(path: str, graph: ModelGraph) -> tuple[str, ...]:
    """All paths of the parameter at `path`."""
    return next((paths for paths in graph.tied if path in paths), (path,))


def _reasons(graph: ModelGraph) -> str:
    """Why what was looked at cannot be split: each reason once, by the first module it holds for,
    and no more of them than are read.
    """
    firsts: dict[str, str] = {}
    for path, reason in graph.unsplit.items():
        firsts.setdefault(reason, path or "the model")
    told = [f"{path}: {reason}" for reason, path in firsts.items()][:NUM_REASONS]
    return f": {'; '.join(told)}" if told else ""


AXIS = Tensor()
