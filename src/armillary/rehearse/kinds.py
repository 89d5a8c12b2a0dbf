"""The messages of a workload sorted by where they are in a step, with what each kind costs."""

from collections.abc import Iterator
from dataclasses import dataclass

from armillary.rehearse.links import Cost, Links
from armillary.spec.workload import Message, Workload

PASSES = ("forward", "backward")
NOTHING = Cost(fixed_s=0.0, wire_s=0.0, level=0, bytes=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Messages of one axis and group that carry the same at the same place of a step.

    `cost` is of all of them in a step on one rank, `collectives` names theirs, `rounds` is beside
    how many micro batches they are sent. `hidden` is the share of a pass beside which they are.
    """

    axis: str
    group: tuple[str, ...]
    carries: str
    behind: str
    collectives: tuple[str, ...]
    cost: Cost
    calls: float
    rounds: float
    hidden: float

    @property
    def name(self) -> str:
        """The axis and what is carried, such as `data gradients`."""
        return f"{self.axis} {self.carries}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sorted:
    """Kinds of messages by where they are: inside a pass, beside one, or after all of them.

    `hop_bytes` are those of one micro batch from a stage to the next, by direction.
    """

    inside: dict[str, list[Kind]]
    gathers: dict[str, list[Kind]]
    reduces: list[Kind]
    after: list[Kind]
    hop_bytes: dict[str, float]


def sort(workload: Workload, links: Links) -> Sorted:
    """The messages of `workload`, priced on `links`."""
    kinds: dict[tuple[object, ...], Kind] = {}
    hops = dict.fromkeys(PASSES, 0.0)
    num_hops = max(_num_stages(workload) - 1, 1) * workload.num_micro_batches
    for one in workload.messages:
        if one.crosses_stages and one.collective == "send" and one.behind in PASSES:
            hops[one.behind] += one.bytes * one.per_step / num_hops
            continue
        for kind in _kinds(one, workload, links):
            key = (kind.axis, kind.group, kind.carries, kind.behind, kind.rounds)
            kinds[key] = _joined(kinds[key], kind) if key in kinds else kind
    inside: dict[str, list[Kind]] = {phase: [] for phase in PASSES}
    gathers: dict[str, list[Kind]] = {phase: [] for phase in PASSES}
    reduces, after = [], []
    for kind in kinds.values():
        if kind.behind not in PASSES:
            after.append(kind)
        elif kind.carries in ("activations", "counts"):
            inside[kind.behind].append(kind)
        elif kind.carries == "parameters":
            gathers[kind.behind].append(kind)
        else:
            reduces.append(kind)
    return Sorted(inside=inside, gathers=gathers, reduces=reduces, after=after, hop_bytes=hops)


def _num_stages(workload: Workload) -> int:
    return sum(stage.num_stages for stage in workload.stages)


def _kinds(one: Message, workload: Workload, links: Links) -> Iterator[Kind]:
    """A message as kinds: what is inside passes of no phase is a third forward, the rest back."""
    is_inside = one.carries in ("activations", "counts") and not one.crosses_stages
    if one.collective == "send":
        first, last = 0, links.degrees[one.axis] - 1
        each = links.hop(one.bytes, first, last, one.axis)
    else:
        each = links.cost(one.collective, one.bytes, links.spans(one.group))
    calls = one.per_step
    if one.crosses_stages and one.carries == "counts":
        calls /= links.degrees[one.axis]
    shares = {one.behind: 1.0}
    if is_inside and one.behind not in PASSES:
        shares = {"forward": 1 / 3, "backward": 2 / 3}
    for behind, share in shares.items():
        cost = each.times(calls * share * (1.0 - one.hidden if is_inside else 1.0))
        if cost.seconds <= 0:
            continue
        yield Kind(
            axis=one.axis,
            group=one.group,
            carries=one.carries,
            behind=behind,
            collectives=(one.collective,),
            cost=cost,
            calls=calls * share,
            rounds=min(one.rounds, float(workload.num_micro_batches)),
            hidden=one.hidden,
        )


def _joined(one: Kind, other: Kind) -> Kind:
    return Kind(
        axis=one.axis,
        group=one.group,
        carries=one.carries,
        behind=one.behind,
        collectives=tuple(dict.fromkeys((*one.collectives, *other.collectives))),
        cost=one.cost + other.cost,
        calls=one.calls + other.calls,
        rounds=max(one.rounds, other.rounds),
        hidden=max(one.hidden, other.hidden),
    )
