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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from armillary.core import compute, orders
from armillary.core.orders import BACKWARD, FORWARD, INPUT, WEIGHT, Run
from armillary.core.play import Played, Tasks, play
from armillary.rehearse.kinds import Kind, Sorted, sort
from armillary.rehearse.links import Cost, Links
from armillary.spec import SpecError
from armillary.spec.workload import StageWork, Workload

COMPUTE, GATHER, REDUCE, AHEAD, BACK = "compute", "gather", "reduce", "send", "send back"
BLOCKING = ("1f1b",)
"""Schedules in which a rank sends and receives in one batch, and goes on when both are done.

Source: torch.distributed.pipelining.schedules, Schedule1F1B (`_wait_batch_p2p`); Megatron-LM,
megatron/core/pipeline_parallel/p2p_communication.py (send_forward_recv_backward).
"""
LANES = (COMPUTE, GATHER, REDUCE, AHEAD, BACK)


@dataclass(frozen=True, slots=True)
class Label:
    """What a task is: of which coordinate of the pipeline, in which lane, and of what.

    `kind` is a pass (F, B, I, W), a name of messages such as `data gradients`, "launch", "update"
    or "step"; `level` is the index of the outermost level that a message crosses, -1 for none.
    """

    coordinate: int
    lane: str
    kind: str
    stage: int = -1
    micro_batch: int = -1
    level: int = -1
    bytes: float = 0.0
    group: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Step:
    """A step as tasks, and what each is; `players` are the ranks that play, by coordinate."""

    workload: Workload
    links: Links
    sorted: Sorted
    tasks: Tasks = field(default_factory=Tasks)
    labels: list[Label] = field(default_factory=list)
    players: list[list[int]] = field(default_factory=list)
    player_of: list[int] = field(default_factory=list)
    link_names: list[tuple[int, int]] = field(default_factory=list)

    def play(self) -> Played:
        """When everything starts and ends."""
        capacity = [self.links.capacity(level) for level, _ in self.link_names]
        return play(self.tasks, capacity, self.workload.slowdown)


def build(workload: Workload, links: Links, *, expanded: bool = False) -> Step:
    """The tasks of one step; `expanded` plays every rank of the job.

    Raises: `SpecError` on a schedule that cannot be played.
    """
    return _Builder(workload, links, expanded).built()


def stages_of(workload: Workload) -> list[StageWork]:
    """The work of every stage, in order."""
    return [one for stage in workload.stages for one in [stage] * stage.num_stages]


@dataclass(slots=True)
class _Pass:
    """Seconds of a pass of a stage without messages beside it, and the messages inside it."""

    busy_s: float
    inside: list[tuple[Kind, Cost]]


class _Builder:
    def __init__(self, workload: Workload, links: Links, expanded: bool) -> None:
        self.workload, self.links = workload, links
        self.axis = workload.stages_axis
        self.degree = workload.degrees.get(self.axis, 1)
        self.stages = stages_of(workload)
        self.mean_blocks = sum(s.num_blocks for s in self.stages) / len(self.stages) or 1.0
        self.step = Step(workload=workload, links=links, sorted=sort(workload, links))
        for coordinate in range(self.degree):
            ranks = links.ranks_at(self.axis, coordinate).tolist()
            self.step.players.append(ranks if expanded else ranks[:1])
        self.expanded = expanded
        self.link: dict[tuple[int, int], int] = {}
        self.streams: dict[tuple[int, int, str], int] = {}
        self.done: dict[tuple[str, int, int], list[int]] = {}
        self.members: dict[tuple[int, tuple[str, ...]], list[list[int]]] = {}
        self.sending: list[list[int]] = [[] for _ in range(self.degree)]  # not yet waited for
        self.weights: dict[tuple[int, int, int], float] = {}
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
        self.passes = {
            (kind, s): self._pass(kind, s)
            for kind in (FORWARD, BACKWARD, INPUT, WEIGHT)
            for s in range(len(self.stages))
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

    # ------------------------------------------------------------------------------------ passes
    def _pass(self, kind: str, stage: int) -> _Pass:
        """Seconds that the device is at a pass, and what is sent inside it."""
        work, load = self.stages[stage], self.workload
        share = work.num_blocks / self.mean_blocks / load.num_micro_batches / load.stages_per_rank
        phase = "forward" if kind == FORWARD else "backward"
        inside = [
            (sent, sent.cost.times(share))
            for sent in self.step.sorted.inside[phase]
            if kind != WEIGHT
        ]
        sent_s = sum(cost.seconds for _, cost in inside)
        calls = sum(sent.calls for sent, _ in inside) * share
        if kind == FORWARD:
            busy_s, launch_s = work.forward_s, work.forward_launch_s
        else:
            whole_s = work.backward_input_s + work.backward_weight_s + work.again_s
            launch_s = work.backward_launch_s
            busy_s = {
                BACKWARD: whole_s,
                INPUT: work.backward_input_s + work.again_s,
                WEIGHT: work.backward_weight_s,
            }[kind]
            launch_s *= busy_s / whole_s if whole_s else 0.0
        launch_s += calls * load.message_launch_s
        waited_s = float(compute.waited_s(busy_s + sent_s, launch_s))
        once_s = load.micro_batch_s / load.stages_per_rank if kind == FORWARD else 0.0
        return _Pass(busy_s + waited_s + once_s, inside)

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
                    self._send_posted()
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
        whole = self.passes[run.kind, run.stage]
        gathers, reduces = self._beside(run)
        cuts = _Cuts(whole.busy_s, self.stages[run.stage].num_blocks, gathers, reduces)
        ready = self._gather(coordinate, run, gathers, cuts.first_share)
        end: list[int] = []
        at = 0.0
        for place, (until, is_gathered, is_sent) in enumerate(cuts.parts()):
            waits = [ready[1] if is_gathered else None]
            if place == 0:
                waits += [arrived, ready[0], self.sent.pop(coordinate, None)]
            end = self._compute(coordinate, run, until - at, waits)
            at = until
            if is_sent:
                self._reduce(coordinate, run, reduces, 1.0 - cuts.last_share, end)
        for kind, cost in whole.inside:
            end = self._message(coordinate, COMPUTE, kind, cost, end, run)
        if reduces:
            self._reduce(coordinate, run, reduces, cuts.last_share, end)
        self._hop(coordinate, run, end)

    def _beside(self, run: Run) -> tuple[list[tuple[Kind, Cost]], list[tuple[Kind, Cost]]]:
        """What is gathered for a pass, and what it sends of gradients."""
        load, sorts = self.workload, self.step.sorted
        share = self.stages[run.stage].num_blocks / self.mean_blocks / load.stages_per_rank
        phase = "forward" if run.kind == FORWARD else "backward"
        gathers, reduces = [], []
        if run.kind != WEIGHT:
            for kind in sorts.gathers[phase]:
                if run.micro_batch < kind.rounds:
                    gathers.append((kind, kind.cost.times(share / kind.rounds)))
        if run.kind in (BACKWARD, WEIGHT):
            for kind in sorts.reduces:
                if self._left_after(run) < kind.rounds:
                    reduces.append((kind, kind.cost.times(share / kind.rounds)))
        return gathers, reduces

    def _left_after(self, run: Run) -> int:
        """How many micro batches of a stage come after this one, backward."""
        m = self.workload.num_micro_batches
        reverses = self.workload.schedule == "looped_bfs"
        return run.micro_batch if reverses else m - 1 - run.micro_batch

    # ------------------------------------------------------------------------------------- tasks
    def _stream(self, coordinate: int, player: int, lane: str) -> int:
        key = (coordinate, player, lane)
        if key not in self.streams:
            self.streams[key] = self.step.tasks.add_stream()
        return self.streams[key]

    def _compute(
        self,
        coordinate: int,
        run: Run,
        seconds: float,
        waits: Sequence[list[int] | None],
    ) -> list[int]:
        label = Label(coordinate, COMPUTE, run.kind, run.stage, run.micro_batch)
        return [
            self._add(
                label,
                player,
                seconds,
                [one[player] for one in waits if one is not None],
                slowed=True,
            )
            for player in range(len(self.step.players[coordinate]))
        ]

    def _add(
        self,
        label: Label,
        player: int,
        fixed_s: float,
        after: Sequence[int],
        *,
        cost: Cost | None = None,
        slows: bool = False,
        slowed: bool = False,
    ) -> int:
        coordinate = label.coordinate
        rank = self.step.players[coordinate][player]
        found = self.step.tasks.add(
            self._stream(coordinate, player, label.lane),
            fixed_s,
            after,
            wire_s=cost.wire_s if cost else 0.0,
            boost=self.links.boost(cost) if cost else 1.0,
            links=list(self._links(coordinate, rank, cost)) if cost else (),
            part=rank,
            slows=slows,
            slowed=slowed,
        )
        self.step.labels.append(label)
        self.step.player_of.append(player)
        return found

    def _links(self, coordinate: int, rank: int, cost: Cost) -> Iterator[tuple[int, float]]:
        for level, share in self.links.taken(cost):
            unit = rank // self.links.units[level]
            key = (level, unit)
            if key not in self.link:
                self.link[key] = len(self.link)
                self.step.link_names.append(key)
            yield self.link[key], share * self._weight(level, unit, coordinate)

    def _weight(self, level: int, unit: int, coordinate: int) -> float:
        """For how many ranks of a unit a player stands."""
        if self.expanded:
            return 1.0
        key = (level, unit, coordinate)
        if key not in self.weights:
            ranks = self.links.ranks_at(self.axis, coordinate)
            self.weights[key] = float((ranks // self.links.units[level] == unit).sum())
        return self.weights[key]

    def _message(
        self,
        coordinate: int,
        lane: str,
        kind: Kind,
        cost: Cost,
        after: list[int] | None,
        run: Run | None = None,
        also: list[int] | None = None,
    ) -> list[int]:
        """A collective: every member starts when all of its group are there."""
        label = Label(
            coordinate,
            lane,
            kind.name,
            run.stage if run else -1,
            run.micro_batch if run else -1,
            cost.level,
            cost.bytes,
            kind.group,
        )
        found = []
        for player, group in enumerate(self._groups(coordinate, kind.group)):
            waits = [one[member] for one in (after, also) if one for member in group]
            slows = lane in (GATHER, REDUCE)
            found.append(self._add(label, player, cost.fixed_s, waits, cost=cost, slows=slows))
        return found

    def _groups(self, coordinate: int, axes: tuple[str, ...]) -> list[list[int]]:
        """By player the players of its group at the same coordinate."""
        ranks = self.step.players[coordinate]
        if len(ranks) == 1:
            return [[0]]
        key = (coordinate, axes)
        if key not in self.members:
            others = [
                tuple(
                    rank // self.links.strides[a] % self.links.degrees[a]
                    for a in self.links.degrees
                    if a not in axes
                )
                for rank in ranks
            ]
            by_place: dict[tuple[int, ...], list[int]] = {}
            for player, other in enumerate(others):
                by_place.setdefault(other, []).append(player)
            self.members[key] = [by_place[other] for other in others]
        return self.members[key]

    def _gather(
        self, coordinate: int, run: Run, gathers: list[tuple[Kind, Cost]], first: float
    ) -> tuple[list[int] | None, list[int] | None]:
        """What a pass gathers: its first piece, which it waits for, and the rest."""
        if not gathers:
            return None, None
        before = self._last_computed(coordinate)
        ends: list[list[int] | None] = [None, None]
        for place, share in enumerate((first, 1.0 - first)):
            if share > 0:
                for kind, cost in gathers:
                    part = cost.times(share)
                    ends[place] = self._message(coordinate, GATHER, kind, part, before, run)
        return ends[0], ends[1] if ends[1] is not None else ends[0]

    def _last_computed(self, coordinate: int) -> list[int] | None:
        lines = [
            self.step.tasks.streams[self._stream(coordinate, player, COMPUTE)]
            for player in range(len(self.step.players[coordinate]))
        ]
        return [line[-1] for line in lines] if lines[0] else None

    def _reduce(
        self,
        coordinate: int,
        run: Run,
        reduces: list[tuple[Kind, Cost]],
        share: float,
        after: list[int],
    ) -> None:
        for kind, cost in reduces:
            if share > 0:
                part = cost.times(share)
                sent = self._message(coordinate, REDUCE, kind, part, after, run)
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
        one = _Unsent(coordinate, direction, made, (made[0], to, run.micro_batch), cost, end)
        if self.blocks:
            self.unsent[coordinate] = one
        else:
            self._send(one, None)

    def _send_posted(self) -> None:
        """Send what the other rank has come to wait for, of what is still unsent."""
        for one in list(self.unsent.values()):
            other = self._rank(one.to[1])
            if self.place[other] >= self.turn[one.to]:
                del self.unsent[one.coordinate]
                self.sent[one.coordinate] = self._send(one, self._last_computed(other))

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
            found.append(self._add(label, player, one.cost.fixed_s, waits, cost=one.cost))
        self.done[one.made] = found
        return found

    def _finish(self, coordinate: int) -> None:
        """What comes after all passes: what is left to send, the update, and the step's own."""
        end = self._last_computed(coordinate)
        assert end is not None, "a rank has at least one pass"
        also = self.sending[coordinate] or None
        for kind in self.step.sorted.after:
            end = self._message(coordinate, COMPUTE, kind, kind.cost, end, None, also)
        load = self.workload
        for name, seconds in (("update", load.update_s), ("step", load.step_s)):
            label = Label(coordinate, COMPUTE, name)
            for player in range(len(end)):
                waits = [also[player]] if also else []
                self._add(label, player, seconds, waits)


@dataclass(frozen=True, slots=True)
class _Unsent:
    """What the pass `made` has for the pass `to`, after the tasks `end`."""

    coordinate: int
    direction: str
    made: tuple[str, int, int]
    to: tuple[str, int, int]
    cost: Cost
    end: list[int]


def _result(run: Run) -> str:
    return INPUT if run.kind == BACKWARD else run.kind


class _Cuts:
    """Where a pass of K blocks is cut: what is gathered is there by then, what is sent from then.

    `first_share` of what is gathered comes before the pass, `last_share` of what is sent after it.
    """

    def __init__(
        self,
        busy_s: float,
        num_blocks: float,
        gathers: list[tuple[Kind, Cost]],
        reduces: list[tuple[Kind, Cost]],
    ) -> None:
        rest = 1.0 - 1.0 / max(num_blocks, 1.0)
        hidden = min((kind.hidden for kind, _ in gathers), default=0.0)
        self.first_share = 1.0 - rest if hidden > 0 else 1.0
        self.gathered_s = busy_s * rest * hidden if gathers and hidden > 0 else None
        hides = min((kind.hidden for kind, _ in reduces), default=0.0)
        self.last_share = 1.0 - rest if hides > 0 and reduces else 1.0
        self.sent_s = busy_s * (1.0 - rest * hides) if reduces and hides > 0 and rest > 0 else None
        self.busy_s = busy_s

    def parts(self) -> Iterator[tuple[float, bool, bool]]:
        """Until when a part lasts, whether it waits for what is gathered, and whether what is sent
        starts after it.
        """
        ends = sorted({one for one in (self.gathered_s, self.sent_s) if one is not None})
        begins = 0.0
        for end in [*ends, self.busy_s]:
            is_gathered = self.gathered_s is not None and begins == self.gathered_s
            yield end, is_gathered, self.sent_s is not None and end == self.sent_s
            begins = end
