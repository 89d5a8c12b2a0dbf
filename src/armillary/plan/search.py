"""The search: rows of degrees, refused or priced with every choice, the best of each row kept."""

from dataclasses import replace
from time import process_time

import numpy as np

from armillary.plan.choices import Choices, all_choices, ends_in_cross_entropy, few_choices
from armillary.plan.folding import fold
from armillary.plan.pricing import Pricing
from armillary.plan.rows import Degrees, Refusals, Rows, find_rows, length
from armillary.plan.scouting import (
    Funnel,
    Index,
    best_groups,
    best_rows,
    first_look,
    group_of,
    may_be_among,
)
from armillary.plan.software import Software
from armillary.plan.wish import Contenders, Found, Wish
from armillary.spec import Layout, Machine, ModelGraph, Search, SpecError
from armillary.spec.quantities import size as in_bytes

EXHAUSTIVE, EXHAUSTIVE_WIDE = 2**20, 2**24
"""Up to so many layouts all are priced; of more, rows are told apart first by a few choices."""


def search(
    graph: ModelGraph,
    machine: Machine,
    software: Software,
    wish: Wish,
    *,
    alike: Layout | None = None,
) -> Found:
    """The fastest and the smallest layout of every row of degrees.

    With `alike` only rows whose degrees are a power of two times those of that layout, or less,
    and a few choices: a look at how it would go on.

    Raises: `SpecError` if no layout is admitted, or none fits the device.
    """
    began_s = process_time()
    rows = find_rows(
        graph, wish.num_devices, wish.global_batch_size, wish.fixed.degrees, wide=wish.wide
    )
    if not rows.num_rows:
        raise _nothing_admitted(rows, wish)
    looking = _Looking(Pricing(fold(graph), machine, software, wish.global_batch_size), rows)
    choices = all_choices(
        wish.fixed, wish.precisions, wide=wish.wide, cuts_loss=ends_in_cross_entropy(graph)
    )
    looking.leave_out_too_large(choices.precisions)
    if alike is not None:
        looking.leave_out_unlike(alike)
        contenders = looking.at(looking.everywhere, few_choices(choices))
    elif looking.num_layouts(choices) <= (EXHAUSTIVE_WIDE if wish.wide else EXHAUSTIVE):
        contenders = looking.at(looking.everywhere, choices)
    else:
        contenders = looking.from_coarse_to_fine(choices, Funnel.wide() if wish.wide else Funnel())
    pricing = looking.pricing
    if not len(contenders):
        raise _nothing_left(looking, wish)
    return Found(
        contenders=contenders,
        grids=tuple(pricing.grids),
        refused=looking.refusals.told(),
        search=Search(
            num_rows=rows.num_rows,
            num_refused_rows=looking.num_refused_rows,
            num_layouts=pricing.num_layouts,
            num_refused=pricing.num_refused,
            num_not_fitting=pricing.num_not_fitting,
            search_s=process_time() - began_s,
        ),
    )


class _Looking:
    """The rows of a search, and what was refused of them and their layouts."""

    def __init__(self, pricing: Pricing, rows: Rows) -> None:
        self.pricing, self.degrees = pricing, rows.degrees
        self.refusals = Refusals(
            found={(r.where, r.found, r.rule, r.fix): r for r in rows.refused},
            num_rows=rows.num_refused,
        )
        self.num_refused_rows = rows.num_refused

    @property
    def everywhere(self) -> Index:
        """All rows."""
        return np.arange(length(self.degrees))

    def num_layouts(self, choices: Choices) -> int:
        """About how many layouts all rows have."""
        return length(self.degrees) * choices.num_choices * len(choices.orders)

    def leave_out_too_large(self, precisions: tuple[str, ...]) -> None:
        """Drop the rows whose states alone exceed a device.

        Raises: `SpecError` if no row is left.
        """
        pricing = self.pricing
        held = pricing.held_bytes(self.degrees, precisions)
        before = self.refusals.num_rows
        pricing.note_too_large(self.degrees, held, self.refusals)
        self.num_refused_rows += self.refusals.num_rows - before
        fits = held <= pricing.machine.device.memory_bytes
        if not fits.any():
            raise _too_large(pricing.machine, float(held.min()))
        self._keep(np.flatnonzero(fits))
        self.held = held[fits]

    def leave_out_unlike(self, layout: Layout) -> None:
        """Drop the rows whose degrees are not those of `layout` times or by a power of two."""
        keep = np.ones(length(self.degrees), dtype=bool)
        for name, column in self.degrees.items():
            ratio = np.maximum(column / layout.degree(name), layout.degree(name) / column)
            keep &= np.exp2(np.round(np.log2(ratio))) == ratio
        self._keep(np.flatnonzero(keep))

    def _keep(self, index: Index) -> None:
        self.degrees = {name: column[index] for name, column in self.degrees.items()}

    def at(self, index: Index, choices: Choices, *, counts: bool = True) -> Contenders:
        """The best layouts of the rows at `index`; refusals are told of if it `counts`."""
        refusals = self.refusals if counts else Refusals()
        found = self.pricing.run(self.some(index), choices, refusals)
        return replace(found, row=index[found.row])

    def some(self, index: Index) -> Degrees:
        """The degrees of the rows at `index`."""
        return {name: column[index] for name, column in self.degrees.items()}

    def from_coarse_to_fine(self, choices: Choices, funnel: Funnel) -> Contenders:
        """The best layouts of the rows that a few choices show to be worth all of them."""
        group = group_of(self.degrees)
        first = first_look(self.degrees, self.held, group, funnel)
        looks = [self.first_seen(first, few_choices(choices, len(first)), funnel)]
        if not len(looks[0]):  # the few choices may be too large where others fit
            return self.at(first, choices)
        second = best_groups(looks[0], group, funnel)
        looks.append(self.at(second, few_choices(choices, len(second))))
        seen = Contenders.joined(looks)
        one_place = replace(choices, orders=choices.orders[:1])
        chosen = best_rows(seen, funnel.rows, funnel.fewest)
        looks.append(self.at(chosen, one_place))
        places = replace(choices, orders=choices.orders[1:])
        if places.orders:
            looks += self._placed(looks[-1], places, funnel)
        return Contenders.joined(looks)

    def first_seen(self, rows: Index, few: Choices, funnel: Funnel) -> Contenders:
        """Of `rows` those that may be among the best of their halving, and the smallest.

        First all are priced without messages, which no layout can beat; then the rows that are the
        fastest so, and of the others those that could still be faster than these are with messages.
        """
        free = Pricing(**self.pricing.subject, sends=False, learnt=self.pricing.learnt)
        bounds = free.run(self.some(rows), replace(few, zeros=few.zeros[:1]), Refusals())
        bounds = replace(bounds, row=rows[bounds.row])
        best = self.at(best_rows(bounds, funnel.rows, funnel.fewest), few)
        if not len(best):
            return best
        left = may_be_among(bounds, best, funnel)
        return Contenders.joined([best, self.at(left, few)]) if len(left) else best

    def _placed(self, seen: Contenders, choices: Choices, funnel: Funnel) -> list[Contenders]:
        """The best rows with the other placements, and the choices that were best for them."""
        if not len(seen):
            return []
        rows = best_rows(seen, funnel.places, funnel.fewest)
        best = seen.some(np.flatnonzero(np.isin(seen.row, rows)))
        layouts = [
            self.pricing.grids[int(grid)].layout(int(place))
            for grid, place in zip(best.grid, best.place, strict=True)
        ]
        return [self.at(rows, choices.only(layouts), counts=False)]


def _nothing_admitted(rows: Rows, wish: Wish) -> SpecError:
    """Why there is no row at all."""
    if not rows.refused:
        return SpecError(
            "--devices",
            f"no tuple of degrees for {wish.num_devices} devices",
            "the product of the degrees is at most the number of devices",
            "use more devices, or fix fewer degrees",
        )
    first = rows.refused[0]
    return SpecError(first.where, first.found, first.rule, first.fix)


def _nothing_left(looking: _Looking, wish: Wish) -> SpecError:
    """Why no layout is left: all were refused, for the most frequent reason, or are too large."""
    pricing = looking.pricing
    if np.isfinite(pricing.least_bytes):
        return _too_large(pricing.machine, pricing.least_bytes)
    told = looking.refusals.told()
    asked = [r for r in told if any(r.where.endswith(name) for name in wish.fixed.words)]
    first = (asked or list(told))[0]
    return SpecError(first.where, first.found, first.rule, first.fix)


def _too_large(machine: Machine, least_bytes: float) -> SpecError:
    return SpecError(
        "memory",
        f"the smallest layout needs {in_bytes(float(least_bytes))} a rank, and "
        f"{machine.device.name} has {in_bytes(machine.device.memory_bytes)}",
        "what a rank holds fits its device (plan/search.py)",
        "use more devices, a smaller batch or model, or a precision of fewer bytes",
    )
