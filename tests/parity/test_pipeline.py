"""A pipeline computes what the serial program does: every gradient, loss and parameter."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from armillary.spec import Layout, SpecError
from armillary.spec.layouts import Layouts
from tests.parity.ranks import Ranks, RanksFailed
from tests.parity.runs import Bench, Result, distance, largest_relative

TOLERANCE = 1e-10
SCHEDULES = (
    "1f1b",
    "gpipe",
    "interleaved_1f1b",
    "looped_bfs",
    "interleaved_zero_bubble",
    "zbv",
    "dualpipev",
)
Gradients = dict[str, Any]


def _case(name: str) -> Any:
    import importlib

    return importlib.import_module(f"tests.parity.cases.{name}")


def _batches(case: Any, sizes: tuple[int, ...]) -> list[Any]:
    import torch

    from armillary.step.parallel import to_device

    samples = iter(case.data()["train"])
    collate = getattr(case, "collate", torch.utils.data.default_collate)
    made = [collate([next(samples) for _ in range(size)]) for size in sizes]
    return to_device(made, torch.device("cpu"), torch.float64)  # type: ignore[no-any-return]


def _loss(case: Any, model: Any, batch: Any) -> Any:
    found = case.loss(model, batch)
    return found[0] / 100 if isinstance(found, tuple) else found / 10


def serial_gradients(name: str, sizes: tuple[int, ...], **options: Any) -> Gradients:
    import torch

    case = _case(name)
    torch.manual_seed(0)
    model = case.model(**options).double()
    for batch in _batches(case, sizes):
        _loss(case, model, batch).backward()
    return {path: p.grad for path, p in model.named_parameters()}


def pipeline_gradients(
    words: str, name: str, sizes: tuple[int, ...], sabotage: str, options: dict[str, Any]
) -> Gradients:
    """One rank's gradients after a step over micro batches of `sizes`, whole."""
    import torch

    from armillary.axes.compose import computing
    from armillary.step.parallel import apply_layout
    from armillary.step.world import join

    case, layout = _case(name), Layout.parse(words)
    with join(layout, "cpu") as world, SABOTAGES[sabotage]():
        torch.manual_seed(0)
        model = case.model(**options).double()
        batches = _batches(case, sizes)
        model, _ = apply_layout(model, world, layout, lambda m: case.loss(m, batches[0]), sizes[0])
        losses = [lambda m, b=b: _loss(case, m, b) for b in batches]
        for _ in range(2):  # the first step also learns shapes
            model.zero_grad()
            with computing(model):
                model.forward_backward(losses, lambda: torch.zeros(2))
        return {
            path: getattr(p.grad, "full_tensor", lambda p=p: p.grad)()
            for path, p in model.named_parameters()
            if p.grad is not None
        }


@contextmanager
def _replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name) if own is None else setattr(owner, name, own)


def _lose_tied() -> Any:
    from armillary.axes.stages.driven import Driven

    return _replaced(Driven, "_add_up_copies", lambda self: None)


def _divide_twice() -> Any:
    from armillary.axes.stages.staged import staged_class

    kind = staged_class()
    reduce = kind.perform_reduce_grad
    return _replaced(kind, "perform_reduce_grad", lambda self, factor: reduce(self, self.chunks))


def _swap_messages() -> Any:
    """What crosses a cut is that of the micro batch before."""
    from armillary.axes.stages.staged import staged_class

    kind = staged_class()
    send = kind.get_fwd_send_ops
    return _replaced(kind, "get_fwd_send_ops", lambda self, i: send(self, max(i - 1, 0)))


def _cut_gradient() -> Any:
    """The gradient of all but the first tensor that crosses is dropped."""
    from armillary.axes.stages import staged

    kind = staged.staged_class()
    send = kind.get_bwd_send_ops

    def lossy(self: Any, chunk: int) -> Any:
        ops = send(self, chunk)
        for op in ops[1:]:
            op.tensor.zero_()
        return ops

    return _replaced(kind, "get_bwd_send_ops", lossy)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


SABOTAGES: dict[str, Callable[[], Any]] = {
    "": _nothing,
    "lose the tied gradient": _lose_tied,
    "divide twice": _divide_twice,
    "swap messages": _swap_messages,
    "cut a gradient": _cut_gradient,
}


def worst(
    ranks: Ranks,
    words: str,
    name: str,
    sizes: tuple[int, ...] = (3, 3, 3, 3, 2),
    sabotage: str = "",
    **options: Any,
) -> float:
    """The worst difference of any gradient from the serial one, after one step."""
    theirs = serial_gradients(name, sizes, **options)
    num_ranks = Layout.parse(words).num_ranks
    found = ranks.run(num_ranks, pipeline_gradients, words, name, sizes, sabotage, options)
    assert set().union(*found) == set(theirs)
    return max(
        distance({**theirs, **{p: g.detach() for p, g in ours.items()}}, theirs) for ours in found
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", ["blocks", "pipeline_masks"])
def test_every_schedule_gives_the_serial_gradients(ranks: Ranks, case: str, schedule: str) -> None:
    """With tied weights, masks, a second tensor that crosses, and micro batches of other shapes."""
    words = f"pipeline=2,pipeline.schedule={schedule}"
    assert worst(ranks, words, case, num_layers=4) <= TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_on_4_ranks(ranks: Ranks, schedule: str) -> None:
    sizes = (2, 2, 2, 2, 2, 2, 2, 1)
    words = f"pipeline=4,pipeline.schedule={schedule}"
    assert worst(ranks, words, "pipeline_masks", sizes, num_layers=8) <= TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sizes", [(3,), (3, 2), (2, 2, 2)])
def test_any_number_of_micro_batches_will_do(
    ranks: Ranks, schedule: str, sizes: tuple[int, ...]
) -> None:
    """Where a schedule takes more or others, the nearest that takes them is run."""
    words = f"pipeline=2,pipeline.schedule={schedule}"
    assert worst(ranks, words, "pipeline_masks", sizes) <= TOLERANCE


@pytest.mark.parametrize(
    ("sabotage", "case"),
    [
        ("lose the tied gradient", "blocks"),
        ("divide twice", "blocks"),
        ("swap messages", "blocks"),
        ("cut a gradient", "pipeline_masks"),
    ],
)
def test_the_comparison_catches(ranks: Ranks, sabotage: str, case: str) -> None:
    sizes = (3, 3, 3, 3)
    assert worst(ranks, "pipeline=2,pipeline.schedule=gpipe", case, sizes, sabotage) > 1e-3
    assert worst(ranks, "pipeline=2,pipeline.schedule=gpipe", case, sizes) <= TOLERANCE


@pytest.fixture(scope="module")
def serial(bench: Bench) -> Callable[..., Result]:
    known: dict[Any, Result] = {}

    def run(case: str, **options: Any) -> Result:
        key = case, *options.items()
        if key not in known:
            known[key] = bench.train(case, "precision=float64", **options)
        return known[key]

    return run


def assert_equal(ours: Result, theirs: Result) -> None:
    assert largest_relative(ours.losses, theirs.losses) <= TOLERANCE
    assert distance(ours.parameters(), theirs.parameters()) <= TOLERANCE
    norms = ours.column("grad_norm"), theirs.column("grad_norm")
    assert largest_relative(*norms) <= TOLERANCE
    for mine, other in zip(ours.evaluations, theirs.evaluations, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=TOLERANCE)
        assert mine["metrics"] == pytest.approx(other["metrics"], rel=TOLERANCE)


CUT = "precision=float64,micro_batch_size=2"


@pytest.mark.parametrize("layout", [
    "pipeline=2",
    "pipeline=4",
    "data=2,pipeline=2",
    "pipeline=2,data=2,pipeline.schedule=interleaved_1f1b",
    "data=2,pipeline=2,pipeline.schedule=interleaved_zero_bubble",
    "pipeline=2,sharded=2",
    "sharded=2,pipeline=2,sharded.zero=1",
    "sharded=2,pipeline=2,sharded.zero=2,pipeline.schedule=looped_bfs",
    "sharded=2,pipeline=2,pipeline.schedule=interleaved_zero_bubble",
    "pipeline=2,recompute=selective,pipeline.schedule=zbv",
    "data=2,pipeline=2,recompute=full,pipeline.schedule=interleaved_zero_bubble",
])  # fmt: skip
def test_a_run_gives_the_serial_numbers(
    bench: Bench, serial: Callable[..., Result], layout: str
) -> None:
    """Tied weights, clipping, a schedule of learning rates, an uneven last batch."""
    theirs = serial("blocks", num_layers=4)
    assert_equal(bench.train("blocks", f"{layout},{CUT}", num_layers=4), theirs)


@pytest.mark.parametrize("layout", [
    "pipeline=2",
    "data=2,pipeline=2,pipeline.schedule=zbv",
    "pipeline=2,sharded=2,pipeline.schedule=dualpipev",
])  # fmt: skip
def test_padded_series_give_the_serial_numbers_and_predictions(
    bench: Bench, serial: Callable[..., Result], layout: str
) -> None:
    """Micro batches differ in length too, and between ranks; outputs are a dict."""
    theirs = serial("pipeline_masks")
    ours = bench.train("pipeline_masks", f"{layout},{CUT}")
    assert_equal(ours, theirs)
    mine, other = (run.folder.predictions("test") for run in (ours, theirs))
    assert mine is not None and other is not None and mine.keys() == other.keys()
    for name, rows in other.items():
        for row, same in zip(mine[name], rows, strict=True):
            np.testing.assert_allclose(row, same, rtol=1e-9, atol=1e-12)


def test_random_numbers_of_the_loss_are_the_serial_ones(bench: Bench) -> None:
    """Noise drawn in the loss is the same on all stages, and that of the serial run."""
    theirs = bench.train("pipeline_masks", CUT, noise=0.3)
    assert_equal(bench.train("pipeline_masks", f"pipeline=2,{CUT}", noise=0.3), theirs)


def test_dropout_is_a_function_of_the_seed(bench: Bench) -> None:
    layout = f"pipeline=2,{CUT},recompute=full"
    first, again = (bench.train("pipeline_masks", layout, dropout=0.3) for _ in range(2))
    assert first.losses == again.losses
    other = bench.train("pipeline_masks", f"{layout},pipeline.schedule=gpipe", dropout=0.3)
    assert other.losses == first.losses, "whatever the order of the micro batches"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pipeline=2", "data=2"),
        ("pipeline=2", ""),
        ("", "pipeline=2"),
        ("data=2,pipeline=2", "pipeline=4"),
        ("pipeline=2,sharded=2", "data=2,pipeline=2,pipeline.schedule=interleaved_1f1b"),
    ],
)
def test_a_run_goes_on_on_another_layout(
    bench: Bench, serial: Callable[..., Result], before: str, after: str
) -> None:
    whole = serial("blocks", num_layers=4)
    stopped = bench.train("blocks", f"{before},{CUT}", stop_after=1, num_layers=4)
    assert len(stopped.losses) == 2
    resumed = bench.resume(stopped.path, f"{after},{CUT}")
    assert largest_relative(resumed.losses, whole.losses) <= TOLERANCE
    assert distance(resumed.parameters(), whole.parameters()) <= TOLERANCE


def test_a_loss_that_is_not_finite_is_seen_by_all(bench: Bench) -> None:
    ended = bench.train("pipeline_nan", "pipeline=2,micro_batch_size=4")
    assert ended.exit_code == 3
    assert len(ended.events("nan")) == 1


@pytest.mark.parametrize(
    ("case", "layout", "words"),
    [
        ("mlp", "pipeline=2", "cannot be cut"),
        ("twice", "pipeline=2", "calls the model 2 times"),
        ("blocks", "pipeline=4", "3 blocks"),
        ("blocks", "pipeline=2,pipeline.schedule=interleaved_1f1b", "3 blocks"),
        ("blocks", "pipeline=2,pipeline.stages_per_rank=2", "1f1b runs 1 stage"),
        ("blocks", "pipeline=2,pipeline.schedule=loop", "is one of 1f1b"),
        ("blocks", "pipeline=2,compile=true", "layout.compile"),
    ],
)
def test_what_cannot_be_done_is_refused(bench: Bench, case: str, layout: str, words: str) -> None:
    with pytest.raises((RanksFailed, SpecError), match=words) as refused:
        bench.train(case, layout)
    assert "SpecError" in str(refused.value) or isinstance(refused.value, SpecError)


def test_tied_weights_beside_another_axis_are_refused_on_a_v(bench: Bench) -> None:
    with pytest.raises(RanksFailed, match="used by two stages of a rank"):
        bench.train("blocks", f"data=2,pipeline=2,pipeline.schedule=zbv,{CUT}", num_layers=4)


def sent_in_a_step(words: str, name: str, sizes: tuple[int, ...]) -> tuple[int, int, int, Any]:
    """Bytes and number of what this rank sends point to point in a step; broadcasts; the graph."""
    import torch
    import torch.distributed as dist

    from armillary.step.parallel import apply_layout
    from armillary.step.world import join

    case, layout = _case(name), Layout.parse(words)
    with join(layout, "cpu") as world:
        batches = _batches(case, sizes)
        model, graph = apply_layout(
            case.model(num_layers=4).double(),
            world,
            layout,
            lambda m: case.loss(m, batches[0]),
            sizes[0],
        )
        losses = [lambda m, b=b: _loss(case, m, b) for b in batches]
        model.forward_backward(losses, lambda: torch.zeros(2, dtype=torch.float64))
        sent: list[int] = []
        told: list[int] = []
        send, broadcast = dist.ProcessGroup.send, dist.broadcast

        def count(group: Any, tensors: Any, *args: Any) -> Any:
            sent.append(sum(tensor.nbytes for tensor in tensors))
            return send(group, tensors, *args)

        def count_broadcast(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            told.append(tensor.nbytes)
            return broadcast(tensor, *args, **kwargs)

        with (
            _replaced(dist.ProcessGroup, "send", count),
            _replaced(dist, "broadcast", count_broadcast),
        ):
            model.forward_backward(losses, lambda: torch.zeros(2, dtype=torch.float64))
        return sum(sent), len(sent), sum(told), graph


@pytest.mark.parametrize("words", [
    "pipeline=2",
    "pipeline=4",
    "pipeline=2,pipeline.schedule=interleaved_1f1b",
    "pipeline=2,pipeline.schedule=zbv",
])  # fmt: skip
@pytest.mark.parametrize("case", ["blocks", "pipeline_masks"])
def test_a_pipeline_sends_what_it_says(ranks: Ranks, words: str, case: str) -> None:
    from armillary.axes import discover

    sizes = (2, 2, 2, 2) if case == "blocks" else (2,)
    layout = Layout.parse(words)
    found = ranks.run(layout.num_ranks, sent_in_a_step, words, case, sizes)
    table = Layouts.of(layout, num_samples=2, num_micro_batches=len(sizes))
    said = discover()["pipeline"].traffic(found[0][3], table)
    sends = [t for t in said if t.collective == "send"]
    assert sum(f[0] for f in found) == sum(float(t.bytes[0] * t.per_step[0]) for t in sends)
    if case == "blocks":  # one tensor crosses a cut
        assert sum(f[1] for f in found) == sum(int(t.per_step[0]) for t in sends)
    broadcast = next(t for t in said if t.collective == "broadcast")
    assert {f[2] for f in found} == {int(broadcast.bytes[0])}
