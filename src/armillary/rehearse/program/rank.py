"""The record of one rank: its program built as `train` builds it, and one step run."""

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator, Sequence

from torch._subclasses.fake_tensor import FakeTensorMode

from armillary.rehearse.program.build import Case, Folding, Program, build, load_experts
from armillary.rehearse.program.ledger import BETWEEN, OF_STEP, Message
from armillary.rehearse.program.order import Pass
from armillary.rehearse.program.plans import check_machine, check_model
from armillary.rehearse.program.repeats import CannotFold
from armillary.rehearse.program.shortened import told_again
from armillary.rehearse.program.step import Rehearsed, rehearse
from armillary.rehearse.program.sums import Adding, Bytes, Part
from armillary.rehearse.program.world import check_rank, coordinates, fake_world
from armillary.spec import Layout, ModelGraph, Plan
from armillary.spec.record import CATEGORIES, Collective, Moment, Record
from armillary.step.recipe import Recipe

NUM_MOMENTS = 2000
"""Moments of a timeline that are told block by block; of a longer one, pass by pass."""


def record(
    recipe: Recipe,
    plan: Plan | Layout,
    rank: int,
    *,
    global_batch_size: int = 0,
    load: float = 1.0,
    fold: bool = True,
) -> Record:
    """What rank `rank` of the plan's layout does in one step of `recipe`.

    `global_batch_size` is the plan's, or the recipe's own, where it is 0. `load` is how many rows
    come to this rank's experts for each that would if all were chosen alike. With `fold` equal
    blocks and equal micro batches are run once or twice, and the others taken to do the same.

    Raises: `SpecError` if there is no such rank, the plan is for another model, an axis refuses the
    model, or its forward pass looks at values.
    """
    layout = plan.layout if isinstance(plan, Plan) else plan
    if isinstance(plan, Plan) and not global_batch_size:
        global_batch_size = plan.global_batch_size
    check_rank(layout, rank)
    if isinstance(plan, Plan):
        check_machine(plan)
    case = Case.of(recipe, layout, global_batch_size, rank)
    foldings = [f for f in Folding if fold or f is Folding.NONE]
    graph = case.read()
    if isinstance(plan, Plan):
        check_model(plan, graph, recipe.name)
    return _rehearse(case, graph, rank, load, foldings)


def _rehearse(
    case: Case, graph: ModelGraph, rank: int, load: float, foldings: Sequence[Folding]
) -> Record:
    """The record with the first of `foldings` that the program allows."""
    folding, *others = foldings
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        allows_ddp = folding is not Folding.SHORT
        with fake_world(case.layout, rank, allows_ddp=allows_ddp) as world, _without_collecting():
            program = build(case, graph, world, fake, folding)
            load_experts(program, load)
            rehearsed = rehearse(program, fake, folds=folding is not Folding.NONE)
        return tell(program, rehearsed)
    except CannotFold:
        if not others:
            raise
        return _rehearse(case, graph, rank, load, others)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """A context in which memory is given back by counting references alone: when a collector comes
    by depends on what ran before.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def tell(program: Program, rehearsed: Rehearsed) -> Record:
    """The record of a program that was rehearsed."""
    case, world = program.case, program.world
    adding = Adding(rehearsed.ledger)
    held = adding.base()
    sent: Counter[tuple[Message, str]] = Counter()
    flops: Counter[str] = Counter()
    moments: list[tuple[str, str, Bytes]] = []
    known = {}
    for one in rehearsed.order.passes:
        if (one.start, one.stop) not in known:
            known[one.start, one.stop] = _parts(program, adding, one)
        for part in known[one.start, one.stop]:
            fullest = [a + b for a, b in zip(held, part.sum.fullest, strict=True)]
            moments.append((_label(one), part.path, fullest))
            held = [a + b for a, b in zip(held, part.sum.left, strict=True)]
            phase = _phase(one)
            flops[phase] += part.sum.flops
            for message, count in part.sum.sent.items():
                sent[message, phase] += count
    label, path, peak = max(moments, key=lambda moment: sum(moment[2]))
    return Record(
        model=case.recipe.name,
        layout=case.layout,
        num_ranks=world.num_ranks,
        rank=world.rank,
        coordinates=coordinates(case.layout, world.rank),
        global_batch_size=case.settings.global_batch_size,
        num_micro_batches=len(case.sizes),
        peak_bytes=sum(peak),
        peak=dict(zip(CATEGORIES, peak, strict=True)),
        peak_at=f"{label} {path}".strip(),
        most={name: max(m[2][i] for m in moments) for i, name in enumerate(CATEGORIES)},
        timeline=_timeline(moments),
        flops=float(sum(flops.values())),
        flops_by_phase={phase: float(count) for phase, count in flops.items()},
        collectives=_collectives(sent),
        num_folded=rehearsed.num_folded,
        num_micro_batches_run=rehearsed.num_run,
    )


def _parts(program: Program, adding: Adding, one: Pass) -> list[Part]:
    """What is done in a pass, block by block, those that were left out among them."""
    parts = adding.parts(one.start, one.stop)
    for short in program.shorts:
        parts = told_again(parts, short)
    return [p for p in parts if p.sum.top or any(p.sum.left) or p.sum.sent or p.sum.flops]


def _label(one: Pass) -> str:
    mark = one.mark
    if mark.micro_batch == OF_STEP:
        return mark.name
    stage = f" of stage {mark.stage}" if mark.name in "FBIW" else ""
    kind = mark.name if mark.kind == BETWEEN else mark.kind
    return f"{kind} {mark.micro_batch}{stage}"


def _phase(one: Pass) -> str:
    return one.mark.name if one.mark.kind == BETWEEN else one.mark.kind


def _timeline(moments: list[tuple[str, str, Bytes]]) -> tuple[Moment, ...]:
    if len(moments) > NUM_MOMENTS:
        fullest: dict[str, Bytes] = {}
        for label, _, held in moments:
            fullest[label] = max(held, fullest.get(label, held), key=sum)
        moments = [(label, "", held) for label, held in fullest.items()]
    return tuple(
        Moment(label=f"{label} {path}".strip(), bytes=dict(zip(CATEGORIES, held, strict=True)))
        for label, path, held in moments
    )


def _collectives(sent: Counter[tuple[Message, str]]) -> tuple[Collective, ...]:
    return tuple(
        Collective(
            collective=message.collective,
            group=message.group,
            num_ranks=message.num_ranks,
            bytes=message.bytes,
            count=count,
            phase=phase,
            module=message.module,
        )
        for (message, phase), count in sent.items()
    )
