"""The pipeline axis: every rank holds some blocks of a chain; micro batches pass through them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from armillary.axes.door import Refusal, Shares, Transfer
from armillary.axes.stages.balance import ONE_STAGE, V_SHAPED, Stages, lay_out, stages_per_rank
from armillary.spec import Layout, ModelGraph, SpecError
from armillary.spec.layouts import Layouts

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import DeviceMesh

SCHEDULE = "pipeline.schedule"
PER_RANK = "pipeline.stages_per_rank"


class Pipeline:
    """Stages of blocks on successive ranks, in the order of one of torch's schedules.

    The micro batches of a step are those of the layout's `micro_batch_size`. Where a step has
    fewer or another number than a schedule takes, the nearest that takes them is used:
    gpipe for 1f1b, looped_bfs for the interleaved ones, zbv for dualpipev. Batch norm takes the
    mean of a micro batch, as it does in a serial run with the same `micro_batch_size`.

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
        return [
            refusal
            for row, (degree, schedule, option) in enumerate(self._rows(layouts))
            if degree > 1
            for refusal in self._refuse(graph, layouts, row, degree, schedule, option)
        ]

    def _refuse(
        self,
        graph: ModelGraph,
        layouts: Layouts,
        row: int,
        degree: int,
        schedule: str,
        option: str,
    ) -> Iterator[Refusal]:
        refused = np.zeros(layouts.num_layouts, dtype=np.bool_)
        refused[row] = True
        per_rank = stages_per_rank(schedule, option)
        reason = _wrong_number(schedule, per_rank) or _uncut(graph, degree, per_rank)
        if reason is None:
            stages = lay_out(graph, degree, schedule, per_rank)
            others = any(int(d[row]) > 1 for a, d in layouts.degrees.items() if a != self.name)
            if stages is None:
                reason = _too_few(graph, degree, per_rank)
            elif others:
                reason = _held_twice(graph, stages, schedule)
        if reason is not None:
            yield Refusal(refused=refused, reason=reason)

    def _rows(self, layouts: Layouts) -> Iterator[tuple[int, str, str]]:
        columns = (
            layouts.degree(self.name),
            layouts.option(SCHEDULE, "1f1b"),
            layouts.option(PER_RANK, "auto"),
        )
        for degree, schedule, option in zip(*columns, strict=True):
            yield int(degree), str(schedule), str(option)

    def divides(self, graph: ModelGraph, layouts: Layouts) -> Shares:
        """An equal share for every rank, as the stages are balanced to hold."""
        share = 1.0 / layouts.degree(self.name)
        return Shares(
            parameters=share,
            gradients=share,
            optimizer_state=share,
            samples=np.ones(layouts.num_layouts),
        )

    def traffic(self, graph: ModelGraph, layouts: Layouts) -> Sequence[Transfer]:
        """What crosses each cut, for every micro batch forward and as its gradient backward.

        Also the gradients of parameters that several stages hold, to the first of them and back,
        and the sums of loss and count, from the last stage to all.
        """
        rows = [
            lay_out(graph, degree, schedule, stages_per_rank(schedule, option))
            if degree > 1
            else None
            for degree, schedule, option in self._rows(layouts)
        ]
        share = layouts.num_samples / _batch_ranks(layouts) / layouts.degree("sequence")
        cuts_norms = layouts.option("tensor.norms", "whole") == "cut"
        share = share / np.where(cuts_norms, layouts.degree("tensor"), 1)
        found = []
        for k, path in enumerate(graph.chain):
            cut = np.array([_is_sent(stages, k) for stages in rows], dtype=np.float64)
            if cut.any():
                number = max(len(graph.crossings[k]), 1)  # of about one size each
                size = graph.crossing_bytes[k] * share / number
                times = cut * layouts.num_micro_batches * number
                found += [
                    _transfer("send", size, times, phase, path) for phase in ("forward", "backward")
                ]
        for glue in graph.glue:
            copies = np.array(
                [len(_holding_ranks(stages, glue.regions)) if stages else 1 for stages in rows]
            )
            if (copies > 1).any():
                size = np.full(layouts.num_layouts, float(glue.parameter_bytes))
                found.append(_transfer("send", size, 2.0 * (copies - 1), "", glue.path))
        told = np.array([float(stages is not None) for stages in rows])
        if told.any():
            found.append(_transfer("broadcast", np.full(len(rows), 16.0), told, "", ""))
            found += self._agreement(layouts, told)
        return found

    def _agreement(self, layouts: Layouts, told: NDArray[np.float64]) -> list[Transfer]:
        """Whether any rank of the mesh meets a shape that is new: a number a micro batch."""
        others = [axis for axis in layouts.degrees if axis != self.name]
        if not others:
            return []
        takes_part = np.stack([layouts.degree(axis) > 1 for axis in others])
        found = []
        for pattern in np.unique(takes_part, axis=1).T:
            rows = (takes_part == pattern[:, None]).all(axis=0)
            group = tuple(axis for axis, is_in in zip(others, pattern, strict=True) if is_in)
            if group:
                found.append(
                    Transfer(
                        collective="all_reduce",
                        group=(self.name, *group),
                        bytes=4.0 * layouts.num_micro_batches.astype(np.float64),
                        per_step=told * rows,
                        hidden_behind="",
                        path="",
                    )
                )
        return found

    def apply(
        self, module: "nn.Module", mesh: "DeviceMesh", layout: Layout, graph: ModelGraph
    ) -> "nn.Module":
        """`module` with this rank's blocks alone, and a step and a forward that drive them."""
        from armillary.axes.stages.driving import drive

        if layout.compile:
            raise SpecError(
                "layout.compile",
                "true with pipeline above 1",
                "a stage runs the model's own forward, which ends in the middle (axes/pipeline.py)",
                "leave compile out",
            )
        schedule = layout.options.get(SCHEDULE, "1f1b")
        per_rank = stages_per_rank(schedule, layout.options.get(PER_RANK, "auto"))
        stages = lay_out(graph, layout.degree(self.name), schedule, per_rank)
        assert stages is not None, "`admits` has seen to it"
        shared = {g.path: _holding_ranks(stages, g.regions) for g in graph.glue}
        shared = {path: ranks for path, ranks in shared.items() if len(ranks) > 1}
        recomputes = layout.recompute != "none"
        return drive(module, graph, stages, schedule, shared, mesh[self.name], recomputes)


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


def _is_sent(stages: Stages | None, block: int) -> bool:
    """Whether there is a cut before `block`, between stages of two ranks."""
    if stages is None or block not in stages.bounds[1:-1]:
        return False
    stage = stages.bounds.index(block)
    return stages.ranks[stage - 1] != stages.ranks[stage]


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
