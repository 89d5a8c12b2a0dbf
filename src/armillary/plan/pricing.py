"""Rows of degrees priced grid by grid, of which the best of every row is kept."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.axes import discover
from armillary.plan.admitting import admit_choices
from armillary.plan.choices import Choices
from armillary.plan.dealing import grids, placed
from armillary.plan.grid import DIMS, Column, Grid
from armillary.plan.lanes import Learnt
from armillary.plan.price import NO_LAYOUT, Priced, price
from armillary.plan.rows import Degrees, Refusals, length, product
from armillary.plan.software import Software
from armillary.plan.terms import BUSY
from armillary.plan.wish import Contenders
from armillary.spec import Layout, Machine, ModelGraph, SpecError
from armillary.spec.layouts import Layouts
from armillary.spec.quantities import size as in_bytes

CHUNK = 2**17
"""Layouts that are priced in one pass: their columns fit into a core's cache."""


class Pricing:
    """What is priced in a search: its grids, how many layouts, and what was refused of them.

    `least_bytes` is the least memory of a layout that was priced, infinite while there is none. If
    nothing `sends` it is the least that a layout may take that is priced.
    """

    def __init__(
        self,
        graph: ModelGraph,
        machine: Machine,
        software: Software,
        batch: int,
        *,
        sends: bool = True,
        learnt: Learnt | None = None,
    ) -> None:
        self.graph, self.machine, self.software, self.batch = graph, machine, software, batch
        self.sends, self.learnt = sends, learnt or Learnt.of(machine)
        self.grids: list[Grid] = []
        self.num_layouts = self.num_refused = self.num_not_fitting = 0
        self.least_bytes = np.inf

    @property
    def subject(self) -> dict[str, Any]:
        """What is priced, by the names of the arguments."""
        names = ("graph", "machine", "software", "batch")
        return {name: getattr(self, name) for name in names}

    def held_bytes(self, degrees: Degrees, precisions: tuple[str, ...]) -> Column:
        """The least that the states of each row take of a rank: all that may be cut is cut."""
        software = self.software
        sizes = (software.parameter_bytes, software.gradient_bytes, software.optimizer_bytes)
        each = min(sum(software.of(one, name) for one in sizes) for name in precisions)
        ones = np.ones(length(degrees), dtype=np.int64)
        table = Layouts(
            num_layouts=len(ones),
            degrees=degrees,
            options={},
            num_samples=ones,
            num_micro_batches=ones,
        )
        share = np.ones(len(ones))
        for axis in discover().values():
            share = share * axis.divides(self.graph, table).optimizer_state
        return np.asarray(self.graph.num_parameters * each * share)

    def note_too_large(self, degrees: Degrees, held: Column, refusals: Refusals) -> None:
        """Count the rows whose states alone exceed a device."""
        limit = self.machine.device.memory_bytes
        too_large = np.flatnonzero(held > limit)
        if not len(too_large):
            return
        least = in_bytes(float(held.min()))
        reason = SpecError(
            "memory",
            f"parameters, gradients and optimiser states alone exceed {in_bytes(limit)}",
            f"what a rank holds fits {self.machine.device.name} (plan/pricing.py)",
            f"cut the model over more ranks; the least is {least} a rank",
        )
        example = Layout(degrees={n: int(column[too_large[0]]) for n, column in degrees.items()})
        refusals.note(reason, len(too_large), str(example))

    def run(self, degrees: Degrees, choices: Choices, refusals: Refusals) -> Contenders:
        """The fastest and the smallest layout of every row, with each placement.

        What the axes and the price refuse is counted in `refusals`.
        """
        inside = self.machine.levels[0].num_ranks if self.machine.levels else 1
        rows, order, origin = placed(degrees, choices.orders, inside)
        kept, admitted = admit_choices(self.graph, rows, order, choices, refusals)
        parts = []
        for grid, index in grids(rows, order, choices, self.batch, CHUNK, kept):
            priced = price(
                self.graph,
                self.machine,
                self.software,
                grid,
                global_batch_size=self.batch,
                sends=self.sends,
                learnt=self.learnt,
            )
            self.grids.append(grid)
            num_repeats = count_refused(priced, refusals)
            self.num_layouts += grid.num_layouts - num_repeats
            self.num_refused -= num_repeats
            refused = admitted.refused(grid, index, self.batch)
            parts.append(self._best_of_rows(priced, origin[index], refused))
        return Contenders.joined(parts)

    def _best_of_rows(
        self, priced: Priced, row: NDArray[np.int64], refused: NDArray[np.bool_] | None
    ) -> Contenders:
        """Of each row of one grid the fastest layout and the smallest, of those that fit.

        `refused` are those that an axis does not admit.
        """
        num_rows = priced.grid.shape[0]
        step_s = priced.step_s if refused is None else np.where(refused, np.inf, priced.step_s)
        step_s = step_s.reshape(num_rows, -1)
        memory = priced.memory_bytes.reshape(num_rows, -1)
        is_refused = np.isinf(step_s)
        too_large = memory > self.machine.device.memory_bytes
        self.num_refused += int(np.count_nonzero(is_refused))
        self.num_not_fitting += int(np.count_nonzero(too_large & ~is_refused))
        memory = np.where(is_refused, np.inf, memory)
        self.least_bytes = min(self.least_bytes, float(memory.min()))
        in_time = np.where(too_large, np.inf, step_s)
        begins = np.arange(num_rows) * step_s.shape[1]
        best = [in_time.argmin(axis=1), memory.argmin(axis=1)]
        place = np.unique(np.concatenate([begins + one for one in best]))
        place = place[np.isfinite(in_time.ravel()[place])]
        mine = place // step_s.shape[1]
        return Contenders(
            num_devices=product(priced.grid.degrees)[mine],
            step_s=in_time.ravel()[place],
            memory_bytes=memory.ravel()[place],
            busy_s=_summed_at(priced, BUSY, place),
            row=row[mine],
            grid=np.full(len(place), len(self.grids) - 1, dtype=np.int64),
            place=place,
        )


def count_refused(priced: Priced, refusals: Refusals) -> int:
    """Count the layouts that the price refuses, by reason; the number of places that are none."""
    codes = priced.refused.ravel()
    weight = priced.grid.num_layouts // max(len(codes), 1)
    counts = np.bincount(codes, minlength=len(priced.reasons) + 1)
    num_repeats = 0
    for code, reason in enumerate(priced.reasons, start=1):
        if reason.found == NO_LAYOUT:
            num_repeats += int(counts[code]) * weight
        elif counts[code]:
            first = int(np.flatnonzero(codes == code)[0])
            place = np.unravel_index(first, priced.refused.shape)
            flat = int(np.ravel_multi_index(place, priced.grid.shape))
            refusals.note(reason, int(counts[code]) * weight, str(priced.grid.layout(flat)))
    return num_repeats


def _summed_at(priced: Priced, names: tuple[str, ...], place: NDArray[np.int64]) -> Column:
    """The sum of the named terms at flat places of the grid."""
    where = np.unravel_index(place, priced.grid.shape)
    total = np.zeros(len(place))
    for name in names:
        if (term := priced.terms.get(name)) is not None:
            full = np.asarray(term).reshape((1,) * (len(DIMS) - np.ndim(term)) + np.shape(term))
            index = tuple(w if n > 1 else 0 for w, n in zip(where, full.shape, strict=True))
            total = total + full[index]
    return total
