"""Routed experts over ranks: every gradient, parameter and message as in the serial program."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest

from armillary.axes import admit, discover
from armillary.spec import Layout, ModelGraph, Routed, SpecError
from armillary.spec.layouts import Layouts
from tests.parity.ranks import Ranks, RanksFailed
from tests.parity.runs import Bench, Result, distance, largest_relative

TOLERANCE = 1e-10
LAYOUTS = ("expert=2", "expert=4", "data=2,expert=2", "expert=2,data=2", "expert=2,sharded=2")
FORMS: dict[str, dict[str, Any]] = {
    "top-2": {},
    "top-1": {"top_k": 1},
    "capacity": {"capacity_factor": 0.8},
    "bias": {"top_k": 1, "balance": "bias"},
}
Gradients = dict[str, Any]


def assert_equal(ours: Result, theirs: Result) -> None:
    assert largest_relative(ours.losses, theirs.losses) <= TOLERANCE
    norms = ours.column("grad_norm"), theirs.column("grad_norm")
    assert largest_relative(*norms) <= TOLERANCE
    assert distance(ours.parameters(), theirs.parameters()) <= TOLERANCE
    for mine, other in zip(ours.evaluations, theirs.evaluations, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=TOLERANCE)


@pytest.fixture(scope="module")
def serial(bench: Bench) -> Callable[[str], Result]:
    known: dict[str, Result] = {}

    def run(form: str) -> Result:
        if form not in known:
            known[form] = bench.train("expert_tokens", "precision=float64", **FORMS[form])
        return known[form]

    return run


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", [*LAYOUTS, "data=2", "sharded=2"])
def test_a_run_gives_the_serial_numbers(
    bench: Bench, serial: Callable[[str], Result], layout: str, form: str
) -> None:
    """26 samples by 8: the last step and the last evaluation leave ranks with none that count."""
    ours = bench.train("expert_tokens", f"{layout},precision=float64", **FORMS[form])
    assert_equal(ours, serial(form))


@pytest.mark.parametrize("cut", ["micro_batch_size=3", "recompute=full", "sharded.zero=2"])
def test_what_else_a_layout_says_changes_nothing(
    bench: Bench, serial: Callable[[str], Result], cut: str
) -> None:
    layout = f"expert=2,sharded=2,{cut},precision=float64"
    assert_equal(bench.train("expert_tokens", layout, **FORMS["bias"]), serial("bias"))


def test_the_forms_do_what_they_are_named_for(serial: Callable[[str], Result]) -> None:
    losses = {form: serial(form).losses[-1] for form in FORMS}
    assert len(set(losses.values())) == len(FORMS)
    biases = [t for name, t in serial("bias").parameters().items() if name.endswith("chooser.bias")]
    assert len(biases) == 2 and all(float(bias.abs().max()) > 0 for bias in biases)


def test_a_checkpoint_is_read_by_another_layout(
    bench: Bench, serial: Callable[[str], Result]
) -> None:
    begun = bench.train("expert_tokens", "expert=2,precision=float64", stop_after=2)
    ended = bench.resume(begun.path, "data=2,expert=2,precision=float64")
    assert largest_relative(ended.losses, serial("top-2").losses) <= TOLERANCE
    assert distance(ended.parameters(), serial("top-2").parameters()) <= TOLERANCE


@contextmanager
def _sabotaged(name: str) -> Iterator[None]:
    """One piece of the axis replaced by a wrong one."""
    from armillary.axes import expert
    from armillary.axes.batch import routed

    real_give, real_by_expert = routed.give_gradient, expert._by_expert

    def give(power: float) -> Any:
        def given(tensor: Any, factor: float, *groups: Any) -> Any:
            return real_give(tensor, factor**power, *groups)

        return mock.patch.object(routed, "give_gradient", given)

    def permuted(counts_DL: Any, num_rows: int) -> Any:
        return real_by_expert(counts_DL, num_rows).flip(0)

    def over_data(module: Any, exchange: Any) -> None:
        exchange.group = _mesh["data"].get_group()
        module.__dict__[routed.EXCHANGE] = exchange

    def out_of_order(self: Any, compute: Any, rows_RH: Any, counts_E: Any) -> Any:
        return real_call(self, compute, rows_RH, counts_E).roll(1, 0)

    real_call = expert.Exchange.__call__
    faults: dict[str, Any] = {
        "averaged twice": lambda: give(2.0),
        "times the degree": lambda: give(0.0),
        "wrong group": lambda: mock.patch.object(expert, "exchange_by", over_data),
        "computed by other experts": lambda: mock.patch.object(expert, "_by_expert", permuted),
        "permuted on return": lambda: mock.patch.object(expert.Exchange, "__call__", out_of_order),
    }
    with ExitStack() as stack:
        if name:
            stack.enter_context(faults[name]())
        yield


_mesh: dict[str, Any] = {}


def _gradients(words: str, num_samples: int, options: dict[str, Any], fault: str = "") -> Gradients:
    """All gradients of one step over `num_samples` samples, whole, as every rank has them."""
    import torch
    from torch.distributed.tensor import DTensor

    from armillary.axes.batch.ranks import note_samples
    from armillary.axes.compose import computing
    from armillary.feeds import Share
    from armillary.step.parallel import apply_layout, plain
    from armillary.step.world import join
    from tests.parity.cases import expert_tokens as case

    torch.manual_seed(0)
    model: Any = case.model(**options).double()
    rows = torch.stack(case.data()["train"][:num_samples])
    with join(Layout.parse(words), "cpu") as world, _sabotaged(fault):
        _mesh["data"] = None if world.mesh is None else world.mesh["data"] if fault else None
        model, _ = apply_layout(model, world, Layout.parse(words))
        share = Share(index=world.batch_index, count=world.batch_count)
        (mine,) = share.micro_batches(0, num_samples)
        note_samples(len(mine))
        with computing(model):
            found = plain(case.loss(model, rows[mine] if len(mine) else rows[:1]))
            (found * (len(mine) * world.batch_count / num_samples)).backward()
        note_samples(1)
        return {
            name: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).numpy()
            for name, p in model.named_parameters()
        }


def _farthest(ours: Gradients, theirs: Gradients) -> float:
    assert ours.keys() == theirs.keys()
    least = 0.01 * max(abs(g).max() for g in theirs.values())
    return max(
        float(abs(ours[name] - g).max() / max(abs(g).max(), least)) for name, g in theirs.items()
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_samples", [5, 3])
def test_every_gradient_of_an_uneven_batch_is_the_serial_one(
    ranks: Ranks, layout: str, form: str, num_samples: int
) -> None:
    """3 samples on 4 ranks: one of them sends tokens that must count nowhere."""
    (theirs,) = ranks.run(1, _gradients, "", num_samples, FORMS[form])
    num_ranks = Layout.parse(layout).num_ranks
    for ours in ranks.run(num_ranks, _gradients, layout, num_samples, FORMS[form]):
        assert _farthest(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize(
    "fault",
    [
        "averaged twice",
        "times the degree",
        "wrong group",
        "computed by other experts",
        "permuted on return",
    ],
)
def test_the_comparison_sees_a_fault(ranks: Ranks, fault: str) -> None:
    (theirs,) = ranks.run(1, _gradients, "", 8, {})
    clean, broken = (
        ranks.run(4, _gradients, "data=2,expert=2", 8, {}, name)[0] for name in ("", fault)
    )
    assert _farthest(clean, theirs) <= TOLERANCE
    assert _farthest(broken, theirs) > 0.05


def _messages(words: str, options: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(collective, ranks, bytes of the whole tensor) of one forward and backward pass."""
    import torch
    import torch.distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode

    from armillary.axes.compose import computing
    from armillary.step.parallel import apply_layout
    from armillary.step.world import join
    from tests.parity.cases import expert_tokens as case

    found: list[tuple[str, int, int]] = []
    names = {
        "alltoall_base_": "all_to_all_single",
        "allreduce_": "all_reduce",
        "_allgather_base_": "all_gather_into_tensor",
        "_reduce_scatter_base_": "reduce_scatter_tensor",
    }

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = str(function.overloadpacket).rpartition(".")[2]
            if "c10d" in str(function) and name in names:
                group = next(a for a in args if isinstance(a, torch.ScriptObject))
                num_ranks = dist.ProcessGroup.unbox(group).size()
                # torch takes what comes out first, and reduces in place
                sizes = [
                    sum(
                        t.nbytes for t in torch.utils._pytree.tree_leaves(arg) if torch.is_tensor(t)
                    )
                    for arg in args[:2]
                ]
                whole = sizes[1] * num_ranks if name == "alltoall_base_" else max(sizes)
                found.append((names[name], num_ranks, whole))
            return function(*args, **(kwargs or {}))

    layout = Layout.parse(words)
    with join(layout, "cpu") as world:
        model, _ = apply_layout(case.model(**options), world, layout)
        rows = torch.stack(case.data()["train"][:2])
        with computing(model):
            case.loss(model, rows).backward()
            with Noted():
                case.loss(model, rows).backward()
    return found


@pytest.mark.parametrize("form", ["top-2", "capacity"])
@pytest.mark.parametrize("words", ["expert=2", "data=2,expert=2", "expert=2,sharded=2"])
def test_the_axes_send_what_they_say(ranks: Ranks, words: str, form: str) -> None:
    """Kind, size of the group, how often, and bytes over all ranks: more rows leave one than
    another. With a capacity fewer rows are sent than are told.
    """
    import torch

    from armillary.models import read
    from tests.parity.cases import expert_tokens as case

    layout = Layout.parse(words)
    rows = torch.stack(case.data()["train"][:2])
    graph = read(case.model(**FORMS[form]), lambda model: case.loss(model, rows), 2)
    table = Layouts.of(layout, num_samples=2 * layout.num_ranks)
    said = [
        (t.collective, layout_size(layout, t.group), float(t.bytes[0]))
        for name in layout.degrees
        for t in discover()[name].traffic(graph, table)
        for _ in range(int(t.per_step[0]))
    ]
    found = ranks.run(layout.num_ranks, _messages, words, FORMS[form])
    for of_rank in found:
        assert sorted(m[:2] for m in of_rank) == sorted(m[:2] for m in said)
    for collective in {name for name, _, _ in said}:
        sent = sum(size for of_rank in found for name, _, size in of_rank if name == collective)
        told = layout.num_ranks * sum(size for name, _, size in said if name == collective)
        if collective == "all_to_all_single" and form == "capacity":
            assert sent < told
        else:
            assert sent == told, collective


def layout_size(layout: Layout, group: tuple[str, ...]) -> int:
    size = 1
    for name in group:
        size *= layout.degree(name)
    return size


ROUTED = Routed(
    path="blocks.0.experts", num_experts=6, num_chosen=2, parameter_bytes=600, token_bytes=40
)
GRAPH = ModelGraph(name="m", num_parameters=200, parameter_bytes=800, routed=(ROUTED,))


def test_what_cannot_be_cut_is_refused_with_a_reason() -> None:
    admit(Layout.parse("expert=3,data=2"), GRAPH)
    with pytest.raises(SpecError, match="does not divide the 6 experts of blocks") as no:
        admit(Layout.parse("expert=4"), GRAPH)
    assert "use one of 1, 2, 3, 6" in str(no.value) and "axes/expert.py" in str(no.value)
    dense = ModelGraph(name="Dense", num_parameters=1, parameter_bytes=4)
    with pytest.raises(SpecError, match="Dense, which has no routed experts") as no:
        admit(Layout.parse("expert=4"), dense)
    assert "use data=4 in place of expert=4" in str(no.value)


def _cut_shared(words: str) -> None:
    import torch

    from armillary.models.experts import Experts
    from armillary.step.parallel import apply_layout
    from armillary.step.world import join

    experts = Experts(4, 8, 8)
    experts.scale = torch.nn.Parameter(torch.ones(8))
    with join(Layout.parse(words), "cpu") as world:
        apply_layout(torch.nn.Sequential(experts), world, Layout.parse(words))


def test_parameters_that_experts_share_are_refused(ranks: Ranks) -> None:
    with pytest.raises(RanksFailed, match=r"0, which holds scale of shape \(8,\) for 4 experts"):
        ranks.run(2, _cut_shared, "expert=2")


def test_a_rank_holds_its_experts_and_all_else() -> None:
    shares = discover()["expert"].divides(GRAPH, Layouts.of(*map(Layout.parse, ("expert=3", ""))))
    assert shares.parameters.tolist() == [(200 + 600 / 3) / 800, 1.0]
    assert shares.samples.tolist() == [1 / 3, 1.0]
