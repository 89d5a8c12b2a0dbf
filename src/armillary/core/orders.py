"""The order in which each rank of a pipeline runs its passes, by schedule.

Those of torch (torch.distributed.pipelining.schedules) are as torch issues them, which a test
compares. torch has no `zb_h2`, which is made by running whatever is ready, and no `v_half`, which
is one pattern of a micro batch's passes over and over.
"""

# Shapes: p ranks, v stages a rank, m micro batches
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

FORWARD, BACKWARD, INPUT, WEIGHT = "F", "B", "I", "W"
V_SHAPED = ("zbv", "dualpipev", "v_half")


@dataclass(frozen=True, slots=True)
class Run:
    """One pass of one micro batch through one stage; `kind` is F, B, or B in two parts: I and W."""

    kind: str
    stage: int
    micro_batch: int


Order = Sequence[Run]
"""What one rank runs, in order."""


def orders(schedule: str, degree: int, stages_per_rank: int, num_micro_batches: int) -> list[Order]:
    """The order of every rank, as torch's schedule of that name runs it.

    Raises: `KeyError` for a schedule that there is not.
    Source: Narayanan et al. 2021, arXiv 2104.04473, figures 3 and 4; Lamy-Poirier 2022,
    arXiv 2211.05953 (breadth first); Qi et al. 2023, arXiv 2401.10241, figures 3 and 7, and 2024,
    arXiv 2405.15362 (zero bubble, V shapes, v_half); DualPipeV, arXiv 2412.19437, appendix.
    """
    p, v, m = degree, stages_per_rank, num_micro_batches
    if schedule == "zb_h2":
        return _as_ready(p, m)
    if schedule == "v_half":
        return _in_a_pattern(p, m)
    made: dict[str, Callable[[int, int, int, int], Order]] = {
        "gpipe": _gpipe,
        "1f1b": _one_ahead,
        "looped_bfs": _breadth_first,
        "interleaved_1f1b": _rounds,
        "interleaved_zero_bubble": _rounds_without_bubble,
        "zbv": _zero_bubble_v,
        "dualpipev": _two_ways,
    }
    return [made[schedule](rank, p, v, m) for rank in range(degree)]


def rank_of(stage: int, degree: int, schedule: str) -> int:
    """Which rank of the pipeline holds a stage: they go round, or in a V back and forth."""
    turn, place = divmod(stage, degree)
    return degree - 1 - place if schedule in V_SHAPED and turn % 2 else place


def _gpipe(rank: int, p: int, v: int, m: int) -> Order:
    return [Run(kind, rank, k) for kind in (FORWARD, BACKWARD) for k in range(m)]


def _breadth_first(rank: int, p: int, v: int, m: int) -> Order:
    stages = [rank + p * i for i in range(v)]
    forward = [Run(FORWARD, s, k) for s in stages for k in range(m)]
    back = [Run(BACKWARD, s, k) for s in reversed(stages) for k in reversed(range(m))]
    return forward + back


def _one_ahead(rank: int, p: int, v: int, m: int) -> Order:
    ahead = min(p - 1 - rank, m)
    found = [Run(FORWARD, rank, k) for k in range(ahead)]
    for k in range(m - ahead):
        found += [Run(FORWARD, rank, ahead + k), Run(BACKWARD, rank, k)]
    return found + [Run(BACKWARD, rank, k) for k in range(m - ahead, m)]


# ------------------------------------------------------------------------------------ interleaved
def _in_rounds(kind: str, step: int, rank: int, p: int, v: int, m: int) -> Run:
    """The `step`-th pass of a rank that takes micro batches in rounds through each stage."""
    in_round = m // max(1, m // p)
    turn, place = divmod(step // in_round, v)
    place = v - 1 - place if kind != FORWARD else place
    return Run(kind, rank + p * place, turn * in_round + step % in_round)


def _rounds(rank: int, p: int, v: int, m: int) -> Order:
    total = m * v
    ahead = min((v - 1) * (m // max(1, m // p)) + 2 * (p - 1 - rank), total)
    found = [_in_rounds(FORWARD, k, rank, p, v, m) for k in range(ahead)]
    for k in range(total):
        if ahead + k < total:
            found.append(_in_rounds(FORWARD, ahead + k, rank, p, v, m))
        found.append(_in_rounds(BACKWARD, k, rank, p, v, m))
    return found


def _rounds_without_bubble(rank: int, p: int, v: int, m: int) -> Order:
    """As `_rounds`, fewer ahead, and gradients of parameters `rank` passes later."""
    total = m * v
    ahead = min((v - 1) * (m // max(1, m // p)) + p - 1 - rank, total)
    found = [_in_rounds(FORWARD, k, rank, p, v, m) for k in range(ahead)]
    for k in range(total + min(rank, total)):
        if ahead + k < total:
            found.append(_in_rounds(FORWARD, ahead + k, rank, p, v, m))
        if k < total:
            found.append(_in_rounds(INPUT, k, rank, p, v, m))
        if k >= rank:
            found.append(_in_rounds(WEIGHT, k - rank, rank, p, v, m))
    return found


# --------------------------------------------------------------------------------------- V shaped
class _Counted:
    """Passes of one rank, of which each takes the next micro batch of its kind and stage."""

    def __init__(self, stages: tuple[int, int]) -> None:
        self.stages = stages
        self.found: list[Run] = []
        self.next: dict[tuple[str, int], int] = {}

    def take(self, *passes: str) -> None:
        """Add passes such as "F0": the kind, and which of the rank's two stages."""
        for one in passes:
            kind, which = one[0], int(one[1])
            index = self.number(kind, which)
            self.found.append(Run(kind, self.stages[which], index))
            self.next[kind, which] = index + 1

    def number(self, kind: str, which: int) -> int:
        """How many of a kind there were."""
        return self.next.get((kind, which), 0)


def _zero_bubble_v(rank: int, p: int, v: int, m: int) -> Order:
    """ZB-V; of fewer micro batches than fill it, those that there are not are left out."""
    most = max(2 * p - 1, m)
    one = _Counted((rank, 2 * p - 1 - rank))
    one.take(*["F0"] * (2 * (p - rank) - 1))
    one.take(*["F1", "F0"] * rank)
    one.take(*["F1", "I1", "W1"] * (p - rank))
    while one.number("F", 1) < one.number("F", 0) or one.number("F", 0) < most:
        if one.number("F", 0) < most:
            one.take("F0")
        one.take("I0", "W0", "F1", "I1", "W1")
    one.take(*["I0", "I1"] * rank)
    one.take(*["I0", "W0"] * (p - rank))
    one.take(*["W1"] * (one.number("I", 1) - one.number("W", 1)))
    one.take(*["W0"] * (one.number("I", 0) - one.number("W", 0)))
    return [run for run in one.found if run.micro_batch < m]


class _Delayed(_Counted):
    """As `_Counted`, with whole backward passes, and a queue of gradients of parameters."""

    def __init__(self, stages: tuple[int, int]) -> None:
        super().__init__(stages)
        self.pending: list[Run] = []

    def back(self, which: int, in_parts: bool) -> None:
        """The next backward pass of a stage, whole or its first part, the second being queued."""
        index = self.number(INPUT, which)
        self.next[INPUT, which] = index + 1
        self.found.append(Run(INPUT if in_parts else BACKWARD, self.stages[which], index))
        if in_parts:
            self.pending.append(Run(WEIGHT, self.stages[which], index))

    def weight(self) -> None:
        """The oldest of the queue, if there is one."""
        if self.pending:
            self.found.append(self.pending.pop(0))


def _two_ways(rank: int, p: int, v: int, m: int) -> Order:
    """DualPipeV: forward and backward passes in turn; what torch overlaps runs one by one."""
    one = _Delayed((rank, 2 * p - 1 - rank))
    one.take(*["F0"] * (2 * (p - 1 - rank)))
    one.take(*["F0", "F1"] * (rank + 1))
    for _ in range(p - 1 - rank):
        one.back(1, in_parts=True)
        one.weight()
        one.take("F1")
    for _ in range(m - 2 * p + rank + 1):
        for forward, back in ((0, 1), (1, 0)):
            one.take(f"F{forward}")
            one.back(back, in_parts=False)
    for _ in range(p - 1 - rank):
        one.back(1, in_parts=False)
        one.take("F1")
        one.back(0, in_parts=False)
    in_parts = False
    for k in range(rank + 1):
        in_parts |= k == (rank + 1) // 2 and rank % 2 == 1
        one.back(1, in_parts)
        in_parts |= k == (rank + 1) // 2 and rank % 2 == 0
        one.back(0, in_parts)
    for _ in range(p - 1 - rank):
        one.weight()
        one.back(0, in_parts)
    for _ in range(rank + 1):
        one.weight()
    return one.found


# ------------------------------------------------------------------------------------ as it comes
def _as_ready(p: int, m: int) -> list[Order]:
    """Every rank runs what is ready, all passes of equal length: I before F before W.

    A rank keeps 2 p - 1 micro batches at most until their W, as ZB-H2 allows.
    """
    done: dict[tuple[str, int, int], int] = {}
    found: list[list[Run]] = [[] for _ in range(p)]
    count = [dict.fromkeys((FORWARD, INPUT, WEIGHT), 0) for _ in range(p)]
    for slot in range(6 * (m + p)):
        made = []
        for rank in range(p):
            run = _next_ready(rank, p, m, count[rank], done)
            if run is not None:
                found[rank].append(run)
                count[rank][run.kind] += 1
                made.append(run)
        if not made and slot > 0:
            break
        for run in made:
            done[run.kind, run.stage, run.micro_batch] = slot + 1
    return list(found)


def _next_ready(
    rank: int, p: int, m: int, count: dict[str, int], done: dict[tuple[str, int, int], int]
) -> Run | None:
    """What a rank runs next of what is ready, or nothing."""
    kept = count[FORWARD] - count[WEIGHT]
    for kind in (INPUT, FORWARD, WEIGHT):
        k = count[kind]
        if k >= m or (kind == FORWARD and kept >= 2 * p - 1):
            continue
        needed = {
            FORWARD: (FORWARD, rank - 1, k) if rank else None,
            INPUT: (INPUT, rank + 1, k) if rank < p - 1 else (FORWARD, rank, k),
            WEIGHT: (INPUT, rank, k),
        }[kind]
        if needed is None or needed in done:
            return Run(kind, rank, k)
    return None


# -------------------------------------------------------------------------------------- a pattern
PERIOD = 6
"""Passes of one micro batch on a rank: F, I and W of two stages, all taken to be equally long."""
AHEAD, BEHIND = 1, 2
"""From rank to rank the first stages' F and the last ones' I follow after one pass, the last ones'
F and the first ones' I after two: over the V a micro batch is kept for 6 passes a rank, of which
`PERIOD` are its own, so that there are p half micro batches at once, half of what 1F1B keeps.

Source: Qi et al. 2024, arXiv 2405.15362, section 3 (building blocks; lifespan over interval).
"""


def _in_a_pattern(p: int, m: int) -> list[Order]:
    """V-Half: a micro batch every `PERIOD` passes, each where the pattern of its rank has it.

    With passes of other lengths the order is the same, and ranks wait in the middle too.
    """
    found = []
    for rank, (f0, f1, i1, i0) in enumerate(_pattern(p)):
        free = sorted({*range(PERIOD)} - {at % PERIOD for at in (f0, f1, i1, i0)})
        w1, w0 = min(
            ((_from(i1 + 1, one), _from(i0 + 1, other)) for one, other in (free, free[::-1])),
            key=sum,
        )
        down, up = rank, 2 * p - 1 - rank
        passes = [
            *((f0, FORWARD, down), (f1, FORWARD, up)),
            *((i1, INPUT, up), (w1, WEIGHT, up), (i0, INPUT, down), (w0, WEIGHT, down)),
        ]
        timed = [(at + PERIOD * k, Run(kind, s, k)) for k in range(m) for at, kind, s in passes]
        found.append([run for _, run in sorted(timed, key=lambda one: one[0])])
    return list(found)


def _pattern(p: int) -> list[tuple[int, int, int, int]]:
    """When each rank begins F of its two stages and I of its two, last stage first; no two of a
    rank at once, with the shortest stops where the V turns.
    """
    across = (AHEAD + BEHIND) * (p - 1)
    for stops in sorted(product(range(1, PERIOD + 1), repeat=3), key=sum):
        top = across + stops[0] + stops[1]  # I of the last stage, on the first rank
        found = []
        for rank in range(p):
            rest = p - 1 - rank
            f1 = AHEAD * (p - 1) + stops[0] + BEHIND * rest
            i0 = top + AHEAD * (p - 1) + stops[2] + BEHIND * rest
            found.append((AHEAD * rank, f1, top + AHEAD * rank, i0))
        if all(len({at % PERIOD for at in starts}) == len(starts) for starts in found):
            return found
    raise AssertionError(f"no pattern for {p} ranks")


def _from(earliest: int, place: int) -> int:
    """The first time from `earliest` on that is at `place` of a period."""
    return earliest + (place - earliest) % PERIOD
