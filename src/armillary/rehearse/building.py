"""From a workload to tasks: the passes of every rank in its schedule's order, and what they send.

Folding. Ranks that differ only in their place along axes that do not hold other modules run the
same passes at the same times, as long as none of them is slower than another: one rank stands then
for all at its coordinate of the pipeline, with the weight of all of them on the links that they
share. That holds where every unit of a level (a node, a group) holds the ranks of the same
coordinates as the one that is played; a job that is cut otherwise is played by its rank 0, and
`expanded` plays every rank of it. A collective among members that are never apart is then one task,
of the seconds of its closed form. Of slow devices and jitter see `rehearse/jitter.py`: replicas are
then played apart, and only the ranks that meet in every pass are folded.

Blocks of a pass are folded too. Of K equal ones whose parameters are gathered or whose gradients
are sent piece by piece, the recurrence end = max(end of the piece before, ready) + piece is linear,
so that its end is set by the first piece or by the last: the first or last K-th is a task of its
own and the rest is one.
"""

from dataclasses import dataclass

from armillary.core import orders
from armillary.core.orders import BACKWARD, FORWARD, INPUT, WEIGHT, Run
from armillary.rehearse.kinds import sort
from armillary.rehearse.links import Cost, Links
from armillary.rehearse.passes import Cuts, Passes, Sent
from armillary.rehearse.placing import Placing
from armillary.rehearse.step import AHEAD, BACK, COMPUTE, GATHER, REDUCE, Label, Step
from armillary.spec import SpecError
from armillary.spec.workload import Workload

BLOCKING = ("1f1b",)
"""Schedules in which a rank sends and receives in one batch, and goes on when both are done.

Source: torch.distributed.pipelining.schedules, Schedule1F1B (`_wait_batch_p2p`); Megatron-LM,
megatron/core/pipeline_parallel/p2p_communication.py (send_forward_recv_backward).
"""


def build(workload: Workload, links: Links, *, expanded: bool = False) -> Step:
    """The tasks of one step; `expanded` plays every rank of the job.

    Raises: `SpecError` on a schedule that cannot be played.
    """
    return _Builder(workload, links, expanded).built()


class _Builder:
    def __init__(self, workload: Workload, links: Links, expanded: bool) -> None:
        self.workload, self.links = workload, links
        self.axis = workload.stages_axis
        self.degree = workload.degrees.get(self.axis, 1)
        self.step = Step(workload=workload, links=links, sorted=sort(workload, links))
        for coordinate in range(self.degree):
            ranks = links.ranks_at(self.axis, coordinate).tolist()
            self.step.players.append(ranks if expanded else ranks[:1])
        self.placing = Placing(self.step, expanded=expanded)
        self.passes = Passes(workload, self.step.sorted)
        self.stages = self.passes.stages
        self.done: dict[tuple[str, int, int], list[int]] = {}
        self.sending: list[list[int]] = [[] for _ in range(self.degree)]  # not yet waited for
        self.unsent: dict[int, _Unsent] = {}
        self.sent: dict[int, list[int]] = {}
        self.blocks = workload.schedule in BLOCKING
        self.hops = {
            (direction, one, other): links.hop(size, one, other, self.axis).times(
                max(workload.exposes_sends, 1.0)
            )
            for direction, size in self.step.sorted.hop_bytes.items()
            for one, other in self._neighbours()
        }

    def _neighbours(self) -> set[tuple[int, int]]:
        if self.degree == 1:
            return set()
        pairs = set()
        for s in range(len(self.stages) - 1):
            one, other = self._rank(s), self._rank(s + 1)
            pairs |= {(one, other), (other, one)}
        return pairs

    def _rank(self, stage: int) -> int:
        return orders.rank_of(stage, self.degree, self.workload.schedule)

    def built(self) -> Step:
        """The whole step."""
        load = self.workload
        try:
            of_ranks = orders.orders(
                load.schedule, self.degree, load.stages_per_rank, load.num_micro_batches
            )
        except KeyError:
            raise SpecError(
                "plan.layout",
                f"pipeline.schedule={load.schedule}",
                "a schedule is played in the order that core/orders.py knows",
                "plan with another schedule: --fix schedule=1f1b",
            ) from None
        self.order, self.place = of_ranks, [0] * self.degree
        self.turn = {
            (_result(run), run.stage, run.micro_batch): index
            for order in of_ranks
            for index, run in enumerate(order)
        }
        left = sum(len(order) for order in of_ranks)
        while left:
            before = left
            for coordinate, order in enumerate(of_ranks):
                while self.place[coordinate] < len(order) and self._may_run(coordinate):
                    self._add_pass(coordinate, order[self.place[coordinate]])
                    self.place[coordinate] += 1
                    self._send_posted(coordinate)
                    left -= 1
            assert left < before, "an order never waits for itself"
        for coordinate in range(self.degree):
            self._finish(coordinate)
        return self.step

    def _needed(self, run: Run) -> tuple[str, int, int] | None:
        last = len(self.stages) - 1
        k = run.micro_batch
        if run.kind == FORWARD:
            return (FORWARD, run.stage - 1, k) if run.stage else None
        if run.kind == WEIGHT:
            return (INPUT, run.stage, k)
        return (INPUT, run.stage + 1, k) if run.stage < last else (FORWARD, run.stage, k)

    def _may_run(self, coordinate: int) -> bool:
        """Whether all that the next pass of a rank waits for is a task by now."""
        needed = self._needed(self.order[coordinate][self.place[coordinate]])
        return (needed is None or needed in self.done) and coordinate not in self.unsent

    def _add_pass(self, coordinate: int, run: Run) -> None:
        """The tasks of a pass: before it what is gathered, beside it what is sent, then the hop."""
        needed = self._needed(run)
        arrived = self.done[needed] if needed is not None else None
        whole = self.passes.of(run)
        gathers, reduces = self.passes.beside(run)
        cuts = Cuts(whole.busy_s, self.stages[run.stage].num_blocks, gathers, reduces)
        ready = self._gather(coordinate, run, gathers, cuts.first_share)
        end: list[int] = []
        at = 0.0
        for place, (until, is_gathered, is_sent) in enumerate(cuts.parts()):
            waits = [ready[1] if is_gathered else None]
            if place == 0:
                waits += [arrived, ready[0], self.sent.pop(coordinate, None)]
            end = self.placing.compute(coordinate, run, until - at, waits)
            at = until
            if is_sent:
                self._reduce(coordinate, run, reduces, 1.0 - cuts.last_share, end)
        for kind, cost in whole.inside:
            end = self.placing.message(coordinate, COMPUTE, kind, cost, end, run)
        if reduces:
            self._reduce(coordinate, run, reduces, cuts.last_share, end)
        self._hop(coordinate, run, end)

    # ------------------------------------------------------------------------------------- tasks
    def _gather(
        self, coordinate: int, run: Run, gathers: Sent, first: float
    ) -> tuple[list[int] | None, list[int] | None]:
        """What a pass gathers: its first piece, which it waits for, and the rest."""
        if not gathers:
            return None, None
        before = self.placing.last_computed(coordinate)
        ends: list[list[int] | None] = [None, None]
        for place, share in enumerate((first, 1.0 - first)):
            if share > 0:
                for kind, cost in gathers:
                    part = cost.times(share)
                    ends[place] = self.placing.message(coordinate, GATHER, kind, part, before, run)
        return ends[0], ends[1] if ends[1] is not None else ends[0]

    def _reduce(
        self,
        coordinate: int,
        run: Run,
        reduces: Sent,
        share: float,
        after: list[int],
    ) -> None:
        for kind, cost in reduces:
            if share > 0:
                part = cost.times(share)
                sent = self.placing.message(coordinate, REDUCE, kind, part, after, run)
                self.sending[coordinate] = sent

    def _hop(self, coordinate: int, run: Run, end: list[int]) -> None:
        """What a pass sends to the next stage, now or when the other rank waits for it."""
        made = (_result(run), run.stage, run.micro_batch)
        direction, to = ("forward", run.stage + 1)
        if made[0] == INPUT:
            direction, to = ("backward", run.stage - 1)
        cost = None
        if run.kind != WEIGHT and 0 <= to < len(self.stages):
            cost = self.hops.get((direction, coordinate, self._rank(to)))
        if cost is None or cost.seconds <= 0:
            self.done[made] = end
            return
        wanted = (made[0], to, run.micro_batch)
        one = _Unsent(coordinate, self._rank(to), direction, made, wanted, cost, end)
        if self.blocks:
            self.unsent[coordinate] = one
        else:
            self._send(one, None)

    def _send_posted(self, coordinate: int) -> None:
        """Send what a rank has come to wait for, and what it has itself for one that waits."""
        for near in (coordinate, coordinate - 1, coordinate + 1):
            one = self.unsent.get(near)
            if one is not None and self.place[one.other] >= self.turn[one.to]:
                del self.unsent[near]
                self.sent[near] = self._send(one, self.placing.last_computed(one.other))

    def _send(self, one: "_Unsent", posted: list[int] | None) -> list[int]:
        label = Label(
            one.coordinate,
            AHEAD if one.direction == "forward" else BACK,
            f"{self.axis} activations",
            one.made[1],
            one.made[2],
            one.cost.level,
            one.cost.bytes,
            (self.axis,),
        )
        found = []
        for player, end in enumerate(one.end):
            waits = [end, posted[player]] if posted is not None else [end]
            found.append(self.placing.add(label, player, one.cost.fixed_s, waits, cost=one.cost))
        self.done[one.made] = found
        return found

    def _finish(self, coordinate: int) -> None:
        """What comes after all passes: what is left to send, the update, and the step's own."""
        end = self.placing.last_computed(coordinate)
        assert end is not None, "a rank has at least one pass"
        also = self.sending[coordinate] or None
        for kind in self.step.sorted.after:
            end = self.placing.message(coordinate, COMPUTE, kind, kind.cost, end, None, also)
        load = self.workload
        for name, seconds in (("update", load.update_s), ("step", load.step_s)):
            label = Label(coordinate, COMPUTE, name)
            for player in range(len(end)):
                waits = [also[player]] if also else []
                self.placing.add(label, player, seconds, waits)


@dataclass(frozen=True, slots=True)
class _Unsent:
    """What the pass `made` has for the pass `to` of the rank `other`, after the tasks `end`."""

    coordinate: int
    other: int
    direction: str
    made: tuple[str, int, int]
    to: tuple[str, int, int]
    cost: Cost
    end: list[int]


def _result(run: Run) -> str:
    return INPUT if run.kind == BACKWARD else run.kind
