"""The order of a rank's schedule, with as few micro batches as show every kind of action.

A schedule repeats itself: it runs ahead by one micro batch after another, goes on in periods, and
ends by one after another. Where the same actions meet twice, what lies between can be left out and
nothing comes to stand beside what it was not beside before. What is left out must be micro batches
as a whole: as many forward as backward passes, gradients of weights and messages.
"""

import heapq
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

BACKWARDS = "BI"
GOES_WITH = {"RECV_F": "F", "SEND_F": "F", "RECV_B": BACKWARDS, "SEND_B": BACKWARDS}
"""torch's word for a message, and the passes of which each has one, or none has."""
NEAR = 3
"""So many places or segments that are alike are tried, from the first and from the last on."""
TRIES = 20
"""So many choices of segments are tried that come to the same."""
CUTS, SUMS = 500, 2000
"""So many cuts are tried in a row, and ways to add segments up."""
COUNTED = ("passes", "halves", "batches")
"""Forward passes without a backward pass, passes without that for weights, and micro batches that
one stage has and another has not."""
Segment = tuple[int, int]
Balance = tuple[int, ...]
"""How many passes, halves of them and messages there are beyond those that they go with."""


class Deed(NamedTuple):
    """A stage, and torch's word for what is done in it."""

    stage: int
    word: str


class Action(NamedTuple):
    """What a stage computes, of which micro batch; `then` is what the schedule sends, takes and
    gathers after it.
    """

    does: Deed
    micro_batch: int
    then: tuple[Deed, ...] = ()


class RankOrder(NamedTuple):
    """What a rank does in a step: what comes before the first action, and the actions."""

    lead: tuple[Deed, ...]
    actions: tuple[Action, ...]

    @property
    def num_micro_batches(self) -> int:
        """Of how many micro batches it is."""
        return len({action.micro_batch for action in self.actions})

    @property
    def is_newest_first(self) -> bool:
        """Whether backward passes begin with the last micro batch."""
        back = [one.micro_batch for one in self.actions if one.does.word in BACKWARDS]
        return bool(back) and back[0] > back[-1]

    def deeds(self) -> Iterator[tuple[Deed, int]]:
        """All that is done, each with the number of its micro batch."""
        counted: Counter[Deed] = Counter()
        last, is_newest_first = self.num_micro_batches - 1, self.is_newest_first
        for action in (Action(Deed(-1, ""), -1, self.lead), *self.actions):
            if action.does.word:
                yield action.does, action.micro_batch
            for deed in action.then:
                is_turned = is_newest_first and GOES_WITH.get(deed.word) == BACKWARDS
                yield deed, last - counted[deed] if is_turned else counted[deed]
                counted[deed] += 1


def kinds(actions: Sequence[Action]) -> list[Any]:
    """By action what it is: itself, what is done right before and after, and whether it is the
    first or the last of its stage.
    """
    does = [action.does for action in actions]
    first = {one: i for i, one in reversed([*enumerate(does)])}
    last = {one: i for i, one in enumerate(does)}
    around = [None, *does, None]
    return [
        (one, action.then or around[i + 2], around[i], i == first[one], i == last[one])
        for i, (one, action) in enumerate(zip(does, actions, strict=True))
    ]


def fewest(order: RankOrder) -> RankOrder:
    """`order` with fewer micro batches, and every kind of action that it has."""
    wanted = set(kinds(order.actions))
    found: RankOrder | None = order
    while found is not None:
        order = found
        cuts = itertools.islice(_cuts(order), CUTS)
        shorter = (numbered(order, _without(order.actions, cut)) for cut in cuts)
        found = next((o for o in shorter if o and wanted == set(kinds(o.actions))), None)
    return order


def numbered(order: RankOrder, actions: Iterable[Action]) -> RankOrder | None:
    """The order of some of its `actions`, with the micro batches that they are of by themselves;
    None if one came before what it needs.
    """
    progress = _Progress(order)
    found = []
    for action in actions:
        number = progress.next(action)
        if number is None:
            return None
        found.append(action._replace(micro_batch=number))
    return RankOrder(order.lead, (*found,))


class _Progress:
    """How far a rank has come in its order."""

    def __init__(self, order: RankOrder) -> None:
        self.local = {action.does.stage for action in order.actions}
        self.used = _words(order)
        self.is_newest_first = order.is_newest_first
        self.done = Counter(order.lead)
        self.halved: defaultdict[int, deque[int]] = defaultdict(deque)

    def next(self, action: Action) -> int | None:
        """The micro batch that `action` is of if it comes next; None if it cannot."""
        stage, letter = action.does
        if letter == "W":
            number = self.halved[stage].popleft() if self.halved[stage] else None
        elif letter == "F":
            number = self._number(stage, "F", {one for one in self.local if one < stage})
        else:
            number = self._number(stage, BACKWARDS, {one for one in self.local if one > stage})
            count = self._passes(stage, "F")
            if number is None or number >= count:
                return None
            number = count - 1 - number if self.is_newest_first else number
            if letter == "I":
                self.halved[stage].append(number)
        self.done.update((action.does, *action.then))
        leaving = (deed for deed in action.then if _leaves(deed))
        if any(self.done[d] > self._passes(d.stage, GOES_WITH[d.word]) for d in leaving):
            return None
        return number

    def _number(self, stage: int, letters: str, before: Iterable[int]) -> int | None:
        """How many passes there were, if what the next one takes is there and has been through the
        stages of this rank that come `before`.
        """
        number = self._passes(stage, letters)
        arriving = Deed(stage, "RECV_F" if letters == "F" else "RECV_B")
        is_awaited = arriving in self.used and self.done[arriving] <= number
        is_ahead = any(self._passes(one, letters) <= number for one in before)
        return None if is_awaited or is_ahead else number

    def _passes(self, stage: int, letters: str) -> int:
        return sum(self.done[Deed(stage, letter)] for letter in letters)


def _leaves(deed: Deed) -> bool:
    return deed.word.startswith("SEND")


def _words(order: RankOrder) -> set[Deed]:
    """All that is done besides computing."""
    return {*order.lead, *(deed for action in order.actions for deed in action.then)}


# ---------------------------------------------------------------------------------- cutting
def _without(actions: Sequence[Action], cut: Iterable[Segment]) -> list[Action]:
    left: list[Action] = []
    at = 0
    for start, stop in sorted(cut):
        left += actions[at:start]
        at = stop
    return [*left, *actions[at:]]


def _cuts(order: RankOrder) -> Iterator[tuple[Segment, ...]]:
    """Segments that are whole micro batches together, longest first where one is enough."""
    balances = _balances(order)
    repeats = _repeats(order.actions)
    alone = {
        (places[a], places[b])
        for places in repeats
        for a, b in itertools.product(_ends(range(len(places))), repeat=2)
        if a < b and balances[places[a]] == balances[places[b]]
    }
    yield from ((one,) for one in sorted(alone, key=lambda one: one[0] - one[1]))
    by_balance: defaultdict[Balance, list[Segment]] = defaultdict(list)
    for places in repeats:
        for start, stop in itertools.pairwise(places):
            difference = zip(balances[stop], balances[start], strict=True)
            by_balance[tuple(b - a for b, a in difference)].append((start, stop))
    most = 2 * len({action.does.stage for action in order.actions}) + 1
    for chosen in _summing_to_nothing([*by_balance], most):
        several = itertools.product(*(_ends(by_balance[one]) for one in chosen))
        yield from itertools.islice(filter(_is_apart, several), TRIES)


def _summing_to_nothing(balances: Sequence[Balance], most: int) -> Iterator[tuple[Balance, ...]]:
    """At most so many of `balances`, one or the other several times, whose sum is 0 everywhere."""
    seen: set[tuple[Balance, ...]] = set()
    waiting: list[tuple[int, tuple[Balance, ...]]] = [(0, (one,)) for one in sorted(balances)]
    while waiting and len(seen) < SUMS:
        _, chosen = heapq.heappop(waiting)
        total = [*map(sum, zip(*chosen, strict=True))]
        uneven = next((i for i, count in enumerate(total) if count), None)
        if uneven is None:
            yield chosen
        elif len(chosen) < most:
            for one in balances:
                more = tuple(sorted((*chosen, one)))
                if one[uneven] * total[uneven] < 0 and more not in seen:
                    seen.add(more)
                    far = sum(abs(a + b) for a, b in zip(total, one, strict=True))
                    heapq.heappush(waiting, (far + len(more), more))


def _ends(found: Sequence[Any]) -> list[Any]:
    return [*found] if len(found) <= 2 * NEAR else [*found[:NEAR], *found[-NEAR:]]


def _is_apart(cut: Sequence[Segment]) -> bool:
    return all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(cut)))


def _repeats(actions: Sequence[Action]) -> list[list[int]]:
    """Places before actions that follow the same, by that; each more than one."""
    found: defaultdict[Deed, list[int]] = defaultdict(list)
    for i, before in enumerate(actions, 1):
        found[before.does].append(i)
    return [places for places in found.values() if len(places) > 1]


def _balances(order: RankOrder) -> list[Balance]:
    """The balance before each action, counted from the first."""
    used = _words(order)
    found: Counter[Deed] = Counter()
    before = [found.copy()]
    for action in order.actions:
        for deed in (action.does, *action.then):
            for word, sign in _counts(deed.word):
                if (one := Deed(deed.stage, word)) in used or word in COUNTED:
                    found[one] += sign
        before.append(found.copy())
    first = Deed(min(action.does.stage for action in order.actions), "batches")
    return [
        tuple(one[deed] - (one[first] if deed.word == "batches" else 0) for deed in found)
        for one in before
    ]


def _counts(word: str) -> Iterator[tuple[str, int]]:
    """What a deed is one more or one less of."""
    if word not in "FBIW":
        yield word, 1
        return
    if word in "IW":
        yield "halves", 1 if word == "I" else -1
    if word == "F":
        yield "batches", 1
    if word != "W":
        yield "passes", 1 if word == "F" else -1
        yield from ((sent, -1) for sent, passes in GOES_WITH.items() if word in passes)
