"""The pipeline axis: every rank holds some blocks of a chain; micro batches pass through them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes.differing import Class
from armillary.axes.door import Refusal, Shares, Transfer
from armillary.axes.regions.messages import is_cut
from armillary.axes.stages.balance import (
    ONE_STAGE,
    V_SHAPED,
    Stages,
    costs,
    lay_out,
    stages_per_rank,
)
from armillary.axes.stages.crossing import alike, num_sent
from armillary.axes.stages.fitting import fitting
from armillary.spec import Layout, ModelGraph, Op, SpecError
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import DeviceMesh

SCHEDULE = "pipeline.schedule"
PER_RANK = "pipeline.stages_per_rank"
PHASES = ("forward", "backward")


class Pipeline:
    """Stages of blocks on successive ranks, in the order of one of torch's schedules.

    The micro batches of a step are those of the layout's `micro_batch_size`. A schedule that is
    named and does not take as many is refused; where none is named, and in the shorter last step
    of an epoch, the nearest that takes them is run (`axes/stages/fitting.py`): gpipe for 1f1b,
    looped_bfs for the interleaved ones, zbv for dualpipev. Batch norm takes the mean of a micro
    batch, as it does in a serial run with the same `micro_batch_size`.

    Source: Huang et al. 2019, "GPipe", arXiv 1811.06965; Narayanan et al. 2021, "Efficient
    Large-Scale Language Model Training on GPU Clusters", arXiv 2104.04473 (1F1B, interleaved);
    Lamy-Poirier 2022, "Breadth-First Pipeline Parallelism", arXiv 2211.05953; Qi et al. 2023,
    "Zero Bubble Pipeline Parallelism", arXiv 2401.10241; DualPipeV, arXiv 2412.19437.
    """

    name = "pipeline"
    order = 0
    borrows: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...]] = {
        "schedule": (
            "1f1b",
            "gpipe",
            "interleaved_1f1b",
            "looped_bfs",
            "interleaved_zero_bubble",
            "zbv",
            "dualpipev",
        ),
        "stages_per_rank": ("auto", "1", "2", "3", "4", "6", "8"),
    }
    splits_batch = False
    splits_module = True
    shares_parameters = True
    sees_calls = True

    def admits(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Refusal]:
        others = np.zeros(layouts.num_layouts, dtype=np.bool_)
        for name, degrees in layouts.degrees.items():
            others |= (degrees > 1) & (name != self.name)
        places, kinds = _distinct(*self._columns(layouts), others)
        compiled = (layouts.degree(self.name) > 1) & layouts.compile
        return [Refusal(refused=compiled, reason=_compiled()), *self._unfit(layouts)] + [
            Refusal(refused=places == index, reason=reason)
            for index, (degree, schedule, option, has_others) in enumerate(kinds)
            if degree > 1
            for reason in [_refuse(graph, degree, schedule, option, has_others)]
            if reason is not None
        ]

    def _unfit(self, layouts: Layouts) -> list[Refusal]:
        """Rows that name a schedule which does not take a step's micro batches.

        Of one micro batch there is one order, whatever its name.
        """
        several = (layouts.num_micro_batches > 1) & (layouts.degree(self.name) > 1)
        several &= layouts.option(SCHEDULE, "") != ""
        if not several.any():
            return []
        columns = (*self._columns(layouts), layouts.num_micro_batches, several)
        places, kinds = _distinct(*columns)
        found = []
        for index, (degree, schedule, option, number, is_asked) in enumerate(kinds):
            per_rank = stages_per_rank(schedule, option)
            runs = fitting(schedule, degree, per_rank, number)
            if is_asked and runs != schedule:
                reason = _not_as_named(schedule, degree * per_rank, number, runs)
                found.append(Refusal(refused=places == index, reason=reason))
        return found

    def _columns(self, layouts: Layouts) -> tuple[NDArray[Any], ...]:
        """Degree, schedule and stages of a rank, by row."""
        return (
            layouts.degree(self.name),
            layouts.option(SCHEDULE, "1f1b"),
            layouts.option(PER_RANK, "auto"),
        )

    def _stages(
        self, graph: ModelGraph, layouts: Layouts
    ) -> tuple[NDArray[np.int64], list[Stages | None]]:
        """The ways in which rows are cut into stages, None for no pipeline, and each row's way."""
        places, kinds = _distinct(*self._columns(layouts))
        return places, [
            lay_out(graph, degree, schedule, stages_per_rank(schedule, option))
            if degree > 1
            else None
            for degree, schedule, option in kinds
        ]

    def divides(self, graph: ModelGraph, layouts: Layouts) -> Shares:
        """An equal share for every rank, as the stages are balanced to hold."""
        share = 1.0 / layouts.degree(self.name)
        return Shares(
            parameters=share,
            gradients=share,
            optimizer_state=share,
            samples=np.ones(layouts.num_layouts),
        )

    def computes(self, op: Op, layouts: Layouts) -> None:
        """Ops as they are, of its own blocks."""

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        """What crosses each cut, for every micro batch forward and as its gradient backward.

        Also the gradients of parameters that several stages hold, to the first of them and back,
        and the sums of loss and count, from the last stage to all.
        """
        places, ways = self._stages(graph, layouts)
        share = layouts.num_samples / _batch_ranks(layouts) / layouts.degree("sequence")
        cuts_norms = layouts.option("tensor.norms", "whole") == "cut"
        share = share / np.where(cuts_norms, layouts.degree("tensor"), 1)
        found = []
        for (crossing_bytes, number, is_wide), blocks in alike(graph).items():
            among = frozenset(blocks)
            cut = np.array([num_sent(stages, among) for stages in ways], dtype=np.float64)
            size = crossing_bytes * share / number
            times = cut[places] * layouts.num_micro_batches * float(number)
            for phase in PHASES:
                found.append(replace(_transfer("send", size, times, phase, ""), is_wide=is_wide))
        for glue in graph.glue:
            copies = np.array(
                [len(_holding_ranks(stages, glue.regions)) if stages else 1 for stages in ways]
            )
            size = glue.parameter_bytes / _shares_of(glue.path, graph, layouts)
            sent = _transfer("send", size, 2.0 * (copies - 1)[places], "", glue.path)
            found.append(replace(sent, carries="gradients"))
        told = np.array([float(stages is not None) for stages in ways])[places]
        size = np.full(layouts.num_layouts, 16.0)
        found.append(replace(_transfer("broadcast", size, told, "", ""), carries="counts"))
        return [*found, self._agreement(layouts, told)]

    def differs(self, graph: ModelGraph, layout: Layout) -> Sequence[Class]:
        """The first rank, the last, and those between by the blocks that they hold.

        Of ranks between that hold equal blocks, the first keeps the most micro batches at once.
        """
        degree = layout.degree(self.name)
        schedule = layout.options.get(SCHEDULE, "1f1b")
        per_rank = stages_per_rank(schedule, layout.options.get(PER_RANK, "auto"))
        stages = lay_out(graph, degree, schedule, per_rank)
        assert stages is not None, "`admits` has seen to it"
        weights = costs(graph)
        ranks: dict[Any, list[int]] = {}
        for rank in range(degree):
            held = stages.of_rank(rank)
            bounds = [stages.bounds[stage : stage + 2] for stage in held]
            blocks = tuple(tuple(weights[first:end]) for first, end in bounds)
            ends = held[0] == 0, stages.num_stages - 1 in held
            ranks.setdefault((ends, blocks), []).append(rank)
        return [
            Class(coordinate=found[0], count=len(found), reason=_place(*ends))
            for (ends, _), found in ranks.items()
        ]

    def _agreement(self, layouts: Layouts, told: NDArray[np.float64]) -> Transfer:
        """Whether any rank of the mesh meets a shape that is new: a number a micro batch."""
        others = [axis for axis in layouts.degrees if axis != self.name]
        has_others = np.zeros(layouts.num_layouts, dtype=bool)
        for axis in others:
            has_others |= layouts.degree(axis) > 1
        return Transfer(
            collective="all_reduce",
            group=(self.name, *others),
            bytes=4.0 * layouts.num_micro_batches.astype(np.float64),
            per_step=told * has_others,
            hidden_behind="",
            path="",
            carries="counts",
        )

    def apply(
        self, module: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
    ) -> "nn.Module":
        """`module` with this rank's blocks alone, and a step and a forward that drive them."""
        from armillary.axes.stages.driving import drive

        schedule = layout.options.get(SCHEDULE, "1f1b")
        per_rank = stages_per_rank(schedule, layout.options.get(PER_RANK, "auto"))
        stages = lay_out(graph, layout.degree(self.name), schedule, per_rank)
        assert stages is not None, "`admits` has seen to it"
        shared = {g.path: _holding_ranks(stages, g.regions) for g in graph.glue}
        shared = {path: ranks for path, ranks in shared.items() if len(ranks) > 1}
        recomputes = layout.recompute != "none"
        return drive(module, graph, stages, schedule, shared, mesh[self.name], recomputes)


def _place(is_first: bool, is_last: bool) -> str:
    if is_first and is_last:
        return "first and last stage"
    return "first stage" if is_first else "last stage" if is_last else "a stage between"


def _transfer(
    collective: str,
    size: NDArray[np.float64],
    times: NDArray[np.float64],
    phase: str,
    path: str,
) -> Transfer:
    return Transfer(
        collective=collective,
        group=("pipeline",),
        bytes=size,
        per_step=times,
        hidden_behind=phase,
        path=path,
    )


def _shares_of(path: str, graph: ModelGraph, layouts: Layouts) -> NDArray[np.float64]:
    """Over how many ranks of the other axes the parameter at `path` is shared out."""
    shares = layouts.degree("sharded").astype(np.float64)
    for split in graph.splits:
        if split.path == path and split.parameter_bytes:
            degrees = layouts.degree("tensor")
            shares = shares * np.where(is_cut(split, degrees), degrees, 1)
    return shares


def _holding_ranks(stages: Stages, regions: Sequence[int]) -> list[int]:
    """The coordinates that hold a parameter of these regions, in order of their stages."""
    return list(dict.fromkeys(stages.ranks[stage] for stage in stages.holders(regions)))


def _batch_ranks(layouts: Layouts) -> NDArray[np.int64]:
    """Over how many ranks the samples of a micro batch are split."""
    from armillary.axes import discover

    ranks = np.ones(layouts.num_layouts, dtype=np.int64)
    for name, axis in discover().items():
        ranks = ranks * (layouts.degree(name) if axis.splits_batch else 1)
    return ranks


def _distinct(*columns: NDArray[Any]) -> tuple[NDArray[np.int64], list[tuple[Any, ...]]]:
    """The rows of `columns` without repeats, and by row which of them it is."""
    place = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        if column.dtype.kind == "U":
            place = 16 * place + _numbered(column)
        else:
            found, index = np.unique(column, return_inverse=True)
            place = place * len(found) + index
    _, first, place = np.unique(place, return_index=True, return_inverse=True)
    kinds = list(zip(*(column[first].tolist() for column in columns), strict=True))
    return place, kinds


def _numbered(words: NDArray[np.str_]) -> NDArray[np.int64]:
    """Equal words as equal numbers; there are few, and sorting them all would take long."""
    number = np.zeros(len(words), dtype=np.int64)
    left = np.ones(len(words), dtype=np.bool_)
    for index in range(len(words)):
        if not left.any():
            break
        same = words == words[left.argmax()]
        number[same] = index
        left &= ~same
    return number


def _refuse(
    graph: ModelGraph, degree: int, schedule: str, option: str, has_others: bool
) -> SpecError | None:
    """Why a degree above 1 cannot serve the model, if so."""
    per_rank = stages_per_rank(schedule, option)
    reason = _wrong_number(schedule, per_rank) or _uncut(graph, degree, per_rank)
    if reason is not None:
        return reason
    stages = lay_out(graph, degree, schedule, per_rank)
    if stages is None:
        return _too_few(graph, degree, per_rank)
    return _held_twice(graph, stages, schedule) if has_others else None


def _compiled() -> SpecError:
    return SpecError(
        "layout.compile",
        "true with pipeline above 1",
        "a stage runs the model's own forward, which ends in the middle (axes/pipeline.py)",
        "leave compile out",
    )


def _not_as_named(schedule: str, num_stages: int, num_micro_batches: int, runs: str) -> SpecError:
    return SpecError(
        f"layout.{SCHEDULE}",
        f"{schedule} with {num_micro_batches} micro batches a step on {num_stages} stages",
        f"torch's {schedule} does not take them; {runs} does (axes/stages/fitting.py)",
        f"use {SCHEDULE}={runs}, or another micro_batch_size",
    )


def _wrong_number(schedule: str, per_rank: int) -> SpecError | None:
    wanted = 1 if schedule in ONE_STAGE else 2
    if per_rank == wanted or schedule not in (*ONE_STAGE, *V_SHAPED):
        return None
    return SpecError(
        f"layout.{PER_RANK}",
        f"{per_rank} with schedule {schedule}",
        f"{schedule} runs {wanted} stage{'s' if wanted > 1 else ''} a rank (axes/pipeline.py)",
        f"leave {PER_RANK} out, or use schedule=interleaved_1f1b",
    )


def _uncut(graph: ModelGraph, degree: int, per_rank: int) -> SpecError | None:
    if graph.chain:
        return None
    return SpecError(
        "layout.pipeline",
        f"degree {degree} for a model that cannot be cut: {graph.uncut or 'it was not seen'}",
        "a pipeline is cut between blocks that follow one another (axes/pipeline.py)",
        "use pipeline=1, or put the repeated blocks in a ModuleList",
    )


def _too_few(graph: ModelGraph, degree: int, per_rank: int) -> SpecError:
    num_cuts = sum(1 for crossing in graph.crossings if crossing)
    most = (num_cuts + 1) // per_rank
    return SpecError(
        "layout.pipeline",
        f"degree {degree} with {per_rank} stage{'s' if per_rank > 1 else ''} a rank, for "
        f"{len(graph.chain)} blocks that can be cut into {num_cuts + 1}",
        "a stage holds at least one block (axes/pipeline.py)",
        f"use pipeline={most} or fewer" if most > 1 else "use pipeline=1, or fewer stages a rank",
    )


def _held_twice(graph: ModelGraph, stages: Stages, schedule: str) -> SpecError | None:
    """A parameter of two stages on one rank cannot be sharded for both."""
    for glue in graph.glue:
        ranks = [stages.ranks[stage] for stage in stages.holders(glue.regions)]
        if len(set(ranks)) < len(ranks):
            return SpecError(
                f"layout.{SCHEDULE}",
                f"{schedule} beside another axis, where {glue.path} is used by two stages of a "
                "rank",
                "such a parameter is held once a rank, and sharded by one stage (axes/pipeline.py)",
                "use pipeline.schedule=1f1b, or do not tie the parameter",
            )
    return None


AXIS = Pipeline()
