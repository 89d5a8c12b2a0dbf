"""Samples cut along their positions: every gradient is that of the serial model."""

from collections import Counter
from typing import Any

import pytest

from armillary.axes import admit, discover
from armillary.spec import Layout, SpecError
from armillary.spec.layouts import Layouts
from tests.parity.ranks import Ranks
from tests.parity.runs import Bench, distance, largest_relative

TOLERANCE = 1e-10
NAMES = ("learned", "signals", "biased", "torchs", "patches", "grid", "series", "ring")
FORMS = ("ring", "heads")


def _gradients(name: str, words: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """On one rank: gradients of the parallel model, of the serial one, and what was sent."""
    import copy

    import torch
    from torch.utils._pytree import tree_map_only

    from armillary.axes.compose import computing
    from armillary.axes.partial import add_up_gradients
    from armillary.step.parallel import apply_layout, plain
    from armillary.step.world import join
    from tests.parity.cases import sequence_models

    layout = Layout.parse(words)
    with join(layout, "cpu") as world:
        model, batch, loss = sequence_models.case(name)
        serial = copy.deepcopy(model)
        loss(serial, batch).backward()
        theirs = {path: p.grad for path, p in serial.named_parameters()}
        model, _ = apply_layout(model, world, layout, lambda m: loss(m, batch), len(batch[0]))

        def part(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.chunk(world.batch_count)[world.batch_index]

        mine = tree_map_only(torch.Tensor, part, batch)
        with Sends() as sends:
            with computing(model):
                loss(model, mine).backward()
            add_up_gradients(model.parameters())
        ours = {path: plain(p.grad) for path, p in model.named_parameters()}
        return ours, theirs, sends.found


class Sends:
    """Counts what goes out, and its bytes, by collective."""

    def __enter__(self) -> "Sends":
        from torch.distributed.tensor import DTensor
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        self.found: dict[str, Any] = {"count": Counter(), "bytes": Counter()}
        found = self.found

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kw: Any = None):
                import torch

                if any(kind is DTensor for kind in types):
                    return NotImplemented  # until it has become what it sends
                name = WORDS.get(str(function).split(".")[1].strip("_"))
                if name and function.namespace in ("c10d", "_c10d_functional"):
                    tensors = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
                    found["count"][name] += 1
                    found["bytes"][name] += tensors[0].numel() * tensors[0].element_size()
                return function(*args, **(kw or {}))

        self.mode = Watch()
        self.mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)


WORDS = {
    "send": "batch_isend_irecv",
    "alltoall_base": "all_to_all_single",
    "allreduce": "all_reduce",
    "all_reduce": "all_reduce",
    "allgather_base": "all_gather_into_tensor",
    "all_gather_into_tensor": "all_gather_into_tensor",
    "reduce_scatter_tensor": "reduce_scatter_tensor",
}


def assert_serial(ranks: Ranks, name: str, words: str) -> None:
    for ours, theirs, _ in ranks.run(Layout.parse(words).num_ranks, _gradients, name, words):
        assert distance(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_the_serial_gradients(ranks: Ranks, name: str, form: str) -> None:
    assert_serial(ranks, name, f"sequence=2,sequence.attention={form}")


@pytest.mark.parametrize("name", NAMES)
def test_four_ranks_give_the_serial_gradients(ranks: Ranks, name: str) -> None:
    assert_serial(ranks, name, "sequence=4")


@pytest.mark.parametrize("words", ["data=2,sequence=2", "sharded=2,sequence=2"])
@pytest.mark.parametrize("name", ["learned", "torchs", "grid"])
def test_beside_axes_that_split_the_batch(ranks: Ranks, name: str, words: str) -> None:
    assert_serial(ranks, name, words)


@pytest.mark.skipif("tensor" not in discover(), reason="there is no tensor axis")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["learned", "torchs"])
def test_beside_the_tensor_axis(ranks: Ranks, name: str, form: str) -> None:
    assert_serial(ranks, name, f"tensor=2,sequence=2,sequence.attention={form}")


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_what_is_recomputed_is_cut_as_well(ranks: Ranks, recompute: str) -> None:
    assert_serial(ranks, "learned", f"sequence=2,recompute={recompute}")


def test_without_balance(ranks: Ranks) -> None:
    assert_serial(ranks, "learned", "sequence=4,sequence.balance=none")


@pytest.mark.parametrize("words", ["sequence=2", "sequence=4,sequence.attention=heads"])
def test_a_run_is_the_serial_one(bench: Bench, words: str) -> None:
    """Losses, clipped norms and parameters over an epoch of several micro batches a step."""
    serial = bench.train("sequence_words", "precision=float64")
    ours = bench.train("sequence_words", f"{words},precision=float64,micro_batch_size=5")
    assert largest_relative(ours.losses, serial.losses) <= TOLERANCE
    assert largest_relative(ours.column("grad_norm"), serial.column("grad_norm")) <= TOLERANCE
    assert distance(ours.parameters(), serial.parameters()) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("learned", "sequence=2"),
        ("learned", "sequence=4,sequence.balance=none"),
        ("learned", "sequence=4,sequence.attention=heads"),
        ("signals", "sequence=2"),
        ("torchs", "sequence=2,sequence.attention=heads"),
        ("ring", "sequence=2"),
        ("ring", "sequence=4"),
    ],
)
def test_it_sends_what_it_says(ranks: Ranks, name: str, words: str) -> None:
    """Count and bytes of every collective of forward and backward pass, against `traffic`."""
    layout = Layout.parse(words)
    degree = layout.num_ranks
    graph, num_samples = _read(name)
    table = Layouts.of(layout, num_samples=num_samples)
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for transfer in discover()["sequence"].traffic(graph, table):
        times = int(transfer.per_step[0])
        share = 1 if transfer.collective == "all_reduce" else degree
        count[transfer.collective] += times
        size[transfer.collective] += round(transfer.bytes[0] * times / share)
    for _, _, found in ranks.run(degree, _gradients, name, words):
        for name_ in ("batch_isend_irecv", "all_to_all_single"):
            assert found["count"][name_] == count[name_]
            assert found["bytes"][name_] == size[name_]
        # Besides, DTensor adds up the loss, and means over positions. Parameters that are used on
        # what is whole, such as a head after a mean, need no sum.
        assert 0 <= found["count"]["all_reduce"] - count["all_reduce"] <= 10
        assert 0.85 <= found["bytes"]["all_reduce"] / size["all_reduce"] <= 1.1
        rest = set(found["bytes"]) - set(size)
        assert sum(found["bytes"][kind] for kind in rest) <= 0.1 * sum(found["bytes"].values())


def _read(name: str) -> tuple[Any, int]:
    from armillary.models import read
    from tests.parity.cases import sequence_models

    model, batch, loss = sequence_models.case(name)
    return read(model, lambda m: loss(m, batch), len(batch[0])), len(batch[0])


def _admit(name: str, words: str) -> None:
    admit(Layout.parse(words), _read(name)[0])


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("learned", "sequence=3", "degree 3 does not divide the 8 positions"),
        ("learned", "sequence=8,sequence.attention=heads", "the 4 heads"),
        ("grid", "sequence=16", "rows of stem.0"),
    ],
)
def test_a_degree_that_does_not_fit_is_refused(name: str, words: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        _admit(name, words)


def test_models_without_positions_are_refused() -> None:
    import torch

    from armillary.models import read

    lstm, mlp = torch.nn.LSTM(3, 4, batch_first=True), torch.nn.Linear(3, 4)
    with pytest.raises(SpecError, match="recurrent"):
        admit(Layout.parse("sequence=2"), read(lstm, lambda m: m(torch.ones(2, 8, 3)), 2))
    with pytest.raises(SpecError, match="neither"):
        admit(Layout.parse("sequence=2"), read(mlp, lambda m: m(torch.ones(2, 3)), 2))


def _wrong_by(fault: str) -> float:
    """The distance from the serial gradients on a rank where `fault` was made."""
    from armillary.axes.attention import ring

    kept = ring.zigzag, ring.contiguous
    if fault == "late":

        def late(length: int, degree: int) -> Any:
            return tuple(
                tuple(chunk._replace(start=chunk.start + (rank > 0)) for chunk in chunks)
                for rank, chunks in enumerate(kept[0](length, degree))
            )

        ring.zigzag = late
    try:
        ours, theirs, _ = _gradients("learned", "sequence=2")
        return distance(ours, theirs)
    finally:
        ring.zigzag, ring.contiguous = kept


@pytest.mark.parametrize("fault", ["", "late"])
def test_a_wrong_causal_offset_is_caught(ranks: Ranks, fault: str) -> None:
    for found in ranks.run(2, _wrong_by, fault):
        assert (found > 1e-3) == bool(fault)
