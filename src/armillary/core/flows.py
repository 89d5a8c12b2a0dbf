"""Flows that share links: max-min fair rates, when each flow ends, what each link carried.

A flow sends at one rate, and each link of its route carries a share of that rate: 1 on a plain
route, less where a message is spread over several ways. Rates are max-min fair: none can rise
without one that is no larger falling (Bertsekas, Gallager, Data Networks, 1992, section 6.5.2).
"""

# Shapes: F flows, L links, B bundles, E entries of a table
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Entries of a sparse matrix, in order of their rows: `row` and `column` int64[E], `share`."""

    row: Index
    column: Index
    share: Array

    @staticmethod
    def of(row: ArrayLike, column: ArrayLike, share: ArrayLike = 1.0) -> "Table":
        """A table of entries in any order; entries of one row and column add up."""
        rows, columns = np.asarray(row, np.int64), np.asarray(column, np.int64)
        shares = np.broadcast_to(np.asarray(share, np.float64), rows.shape)
        if rows.size and (rows[1:] < rows[:-1]).any():
            order = np.argsort(rows, kind="stable")
            rows, columns, shares = rows[order], columns[order], shares[order]
        return Table(row=rows, column=columns, share=np.ascontiguousarray(shares))

    def of_rows(self, wanted: Mask) -> "Table":
        """The entries of the rows that are `wanted`, whose numbers stay."""
        kept = wanted[self.row]
        return Table(row=self.row[kept], column=self.column[kept], share=self.share[kept])

    @cached_property
    def starts(self) -> Index:
        """Where the entries of each row that has some begin."""
        begins = np.ones(self.row.size, np.bool_)
        np.not_equal(self.row[1:], self.row[:-1], out=begins[1:])
        return np.flatnonzero(begins)

    def of_columns(self, wanted: Mask) -> "Table":
        """The entries of the columns that are `wanted`, whose numbers stay."""
        kept = wanted[self.column]
        return Table(row=self.row[kept], column=self.column[kept], share=self.share[kept])

    def least(self, values: Array, num_rows: int, per_share: bool = False) -> Array:
        """The least of `values` of each row's columns, divided by the share where asked.

        Infinite where a row has none.
        """
        found = np.full(num_rows, np.inf)
        if self.row.size:
            each = values[self.column]
            each = each / self.share if per_share else each
            found[self.row[self.starts]] = np.minimum.reduceat(each, self.starts)
        return found


EMPTY = Table.of([], [])


@dataclass(frozen=True, kw_only=True)
class Routes:
    """What each flow takes of each link.

    `direct` has a row a flow; its columns are the links 0 ... `num_links` - 1, and from there on
    bundles: ways that many flows share, whose links are the rows of `bundles`.
    """

    num_flows: int
    num_links: int
    direct: Table
    bundles: Table = EMPTY
    num_bundles: int = 0

    def loads(self, of_flows: Array) -> Array:
        """What the links carry if each flow carries `of_flows`: conserved, of shape [L]."""
        at = self.direct
        num = self.num_links + self.num_bundles
        every = np.asarray(np.bincount(at.column, at.share * of_flows[at.row], num), np.float64)
        links = every[: self.num_links]
        if self.num_bundles:
            shared = self.bundles
            on_bundles = every[self.num_links :][shared.row]
            links = links + np.bincount(shared.column, shared.share * on_bundles, self.num_links)
        return links

    def of_flows(self, wanted: Mask) -> "Routes":
        """The same with only the flows that are `wanted`; all numbers stay."""
        return Routes(
            num_flows=self.num_flows,
            num_links=self.num_links,
            direct=self.direct.of_rows(wanted),
            bundles=self.bundles,
            num_bundles=self.num_bundles,
        )

    def of_open(self, is_open: Mask) -> "Routes":
        """The same with only the flows that are open and the bundles that they take."""
        left = self.of_flows(is_open)
        if not self.num_bundles:
            return left
        taken = np.zeros(self.num_links + self.num_bundles, np.bool_)
        taken[left.direct.column] = True
        return replace(left, bundles=self.bundles.of_rows(taken[self.num_links :]))

    def packed(self, capacity: Array) -> tuple["Routes", Array, Index]:
        """The same on the links that carry something, their capacities, and which these are."""
        used = np.zeros(self.num_links + self.num_bundles, np.bool_)
        used[self.direct.column] = True
        live = used[self.num_links :]
        bundles = self.bundles.of_rows(live)
        used[bundles.column] = True
        links = np.flatnonzero(used[: self.num_links])
        number = np.zeros(used.size, np.int64)
        number[links] = np.arange(links.size)
        number[self.num_links :] = links.size + np.cumsum(live) - 1
        routes = Routes(
            num_flows=self.num_flows,
            num_links=links.size,
            direct=Table(
                row=self.direct.row,
                column=number[self.direct.column],
                share=self.direct.share,
            ),
            bundles=Table(
                row=number[self.num_links :][bundles.row] - links.size,
                column=number[bundles.column],
                share=bundles.share,
            ),
            num_bundles=int(live.sum()),
        )
        return routes, capacity[links], links


def max_min_rates(routes: Routes, capacity: Array, tolerance: float = 1e-9) -> Array:
    """Max-min fair rates of shape [F] in the unit of `capacity`; infinite where no link is used.

    Progressive filling, in which every link that is the tightest of all its flows is filled in the
    same round: shares of links only rise, so those flows are settled. With a `tolerance` links that
    are nearly the tightest are filled too: then a rate may be lower by that share, and no link is
    ever overfull.
    """
    return _fill(*_binding(*routes.packed(np.asarray(capacity, np.float64))[:2]), tolerance)


def _fill(packed: Routes, left: Array, tolerance: float) -> Array:
    """The rates on links that can be filled, of which `left` is free."""
    rates = np.full(packed.num_flows, np.inf)
    is_open = np.zeros(packed.num_flows, np.bool_)
    is_open[packed.direct.row] = True
    while packed.direct.row.size:
        load = packed.loads(is_open.astype(np.float64))
        level = np.full(left.size, np.inf)
        np.divide(left, load, out=level, where=load > 1e-12)
        every = np.append(level, packed.bundles.least(level, packed.num_bundles))
        least = packed.direct.least(every, packed.num_flows)
        settles = _settles(packed, every, least, tolerance)
        rates[settles] = least[settles]
        left = np.maximum(left - packed.loads(np.where(settles, least, 0.0)), 0.0)
        is_open &= ~settles
        packed = packed.of_open(is_open)
    return rates


def _binding(routes: Routes, capacity: Array) -> tuple[Routes, Array]:
    """The routes and capacities without links that their flows could not fill all together.

    A flow is at most as fast as its tightest link lets it be alone; that link stays.
    """
    at, shared = routes.direct, routes.bundles
    alone = np.append(capacity, shared.least(capacity, routes.num_bundles, per_share=True))
    most = at.least(alone, routes.num_flows, per_share=True)
    load = routes.loads(np.where(np.isfinite(most), most, 0.0))
    fills = load >= capacity * (1.0 - 1e-9)
    kept = shared.of_columns(fills)
    has_some = np.zeros(routes.num_bundles, np.bool_)
    has_some[kept.row] = True
    left = Routes(
        num_flows=routes.num_flows,
        num_links=routes.num_links,
        direct=at.of_columns(np.append(fills, has_some)),
        bundles=kept,
        num_bundles=routes.num_bundles,
    )
    packed, capacities, _ = left.packed(capacity)
    return packed, capacities


def _settles(routes: Routes, every: Array, least: Array, tolerance: float) -> Mask:
    """The flows on a link whose flows have none that is tighter."""
    at, shared, num_links = routes.direct, routes.bundles, routes.num_links
    is_tighter = least[at.row] < every[at.column] * (1.0 - tolerance)
    held = np.zeros(every.size, np.bool_)
    held[at.column[is_tighter]] = True
    if routes.num_bundles:
        # A link of a bundle is held up by any flow of the bundle that is tighter than the link.
        slowest = np.full(every.size, np.inf)
        shares = at.column >= num_links
        np.minimum.at(slowest, at.column[shares], least[at.row[shares]])
        over = slowest[num_links:][shared.row] < every[shared.column] * (1.0 - tolerance)
        held[shared.column[over]] = True
        is_full = ~held[shared.column] & (
            every[shared.column] * (1.0 - tolerance) <= slowest[num_links:][shared.row]
        )
        free_bundle = np.zeros(routes.num_bundles, np.bool_)
        free_bundle[shared.row[is_full]] = True
        held[num_links:] = ~free_bundle
    filled = ~held[at.column] & (every[at.column] * (1.0 - tolerance) <= least[at.row])
    found = np.zeros(least.size, np.bool_)
    found[at.row[filled]] = True
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """Flows that were played out: `finish_s` of shape [F], and what each link carried, [L]."""

    finish_s: Array
    carried: Array


def play(
    routes: Routes,
    capacity: Array,
    amounts: Array,
    team: Index | None = None,
    turn: Index | None = None,
    tolerance: float = 0.02,
) -> Played:
    """When each flow has sent its `amounts`, if rates are fair whenever one starts or ends.

    Flows of a `team` send in the order of their `turn`: one of turn k starts when the last of turn
    k - 1 has ended. Ends within `tolerance` of the time that has passed are one event: what the
    earlier of them leave free is used from the last of them on, so a time is never too short, and
    too long by that share at most. What a link carried is exact.
    """
    num = routes.num_flows
    teams = np.arange(num) if team is None else team
    turns = np.zeros(num, np.int64) if turn is None else turn
    clock = _Turns(teams, turns)
    whole, (routes, capacity, used) = routes, routes.packed(capacity)
    left = np.asarray(amounts, np.float64).copy()
    finish_s, now = np.zeros(num), 0.0
    active = clock.started()
    bound = _Bound(routes, capacity)
    while active.size:
        rates = bound.rates(active, tolerance / 10.0)
        remains = left[active]
        ends = np.divide(remains, rates, out=np.zeros(active.size), where=remains > 0)
        first = float(ends.min())
        done = ends <= first + tolerance * (now + first)
        last = float(ends[done].max())
        finish_s[active[done]] = now + ends[done]
        goes_on = active[~done]
        left[goes_on] -= rates[~done] * last
        now += last
        active = np.concatenate([goes_on, clock.after(active[done])])
    carried = np.zeros(whole.num_links)
    carried[used] = routes.loads(np.asarray(amounts, np.float64))
    return Played(finish_s=finish_s, carried=carried)


class _Bound:
    """Routes without the links that a set of flows could not fill: nor could any part of them.

    So the links are gone through anew only where flows start, or when half of them have ended.
    """

    def __init__(self, routes: Routes, capacity: Array) -> None:
        self.routes, self.capacity = routes, capacity
        self.count = np.bincount(routes.direct.row, minlength=routes.num_flows)
        self.begin = np.cumsum(self.count) - self.count
        self.flows = np.zeros(0, np.int64)
        self.place = np.full(routes.num_flows, -1)
        self.bound = routes, capacity

    def rates(self, flows: Index, tolerance: float) -> Array:
        """Max-min fair rates of `flows`, which share the links with no others."""
        if 2 * flows.size < self.flows.size or (self.place[flows] < 0).any():
            self.place[self.flows] = -1
            self.flows = flows
            self.place[flows] = np.arange(flows.size)
            self.bound = _binding(*self._of(flows).packed(self.capacity)[:2])
        bound, left = self.bound
        at = self.place[flows]
        is_open = np.zeros(self.flows.size, np.bool_)
        is_open[at] = True
        return np.asarray(_fill(bound.of_open(is_open), left, tolerance)[at], np.float64)

    def _of(self, flows: Index) -> Routes:
        """The routes of these flows alone, numbered in their order."""
        count, at = self.count[flows], self.routes.direct
        entry = _spans(self.begin[flows], count)
        row = np.repeat(np.arange(flows.size), count)
        direct = Table(row=row, column=at.column[entry], share=at.share[entry])
        return replace(self.routes, num_flows=flows.size, direct=direct)


class _Turns:
    """Whose turn it is: how many flows of each team and turn have not ended yet."""

    def __init__(self, teams: Index, turns: Index) -> None:
        self.num_turns = int(turns.max(initial=0)) + 1
        self.key = teams * self.num_turns + turns
        num_teams = int(teams.max(initial=-1)) + 1
        self.order = np.argsort(self.key, kind="stable")
        self.count = np.bincount(self.key, minlength=num_teams * self.num_turns)
        self.begin = np.cumsum(self.count) - self.count
        self.open = self.count.copy()
        self.at = np.full(num_teams, -1)

    def started(self) -> Index:
        """The flows whose turn has come since this was last asked."""
        still = self.open.reshape(-1, self.num_turns) > 0
        at = np.where(still.any(axis=1), still.argmax(axis=1), self.num_turns)
        moved = np.flatnonzero((at != self.at) & (at < self.num_turns))
        self.at = at
        key = moved * self.num_turns + at[moved]
        return np.asarray(self.order[_spans(self.begin[key], self.count[key])], np.int64)

    def after(self, done: Index) -> Index:
        """The flows that start once those which are `done` have ended."""
        self.open -= np.bincount(self.key[done], minlength=self.open.size)
        return self.started()


def _spans(begin: Index, count: Index) -> Index:
    """The numbers from each `begin` on, `count` of each, one after another."""
    jump = np.repeat(begin - (np.cumsum(count) - count), count)
    return np.asarray(jump + np.arange(jump.size), np.int64)
