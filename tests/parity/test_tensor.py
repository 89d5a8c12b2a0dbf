"""The tensor axis changes no gradient, of any module, and sends what it says."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.parity.cases import tensor_modules
from tests.parity.ranks import Ranks
from tests.parity.runs import Bench, distance, largest_relative

TOLERANCE = 1e-10
Sent = Counter[tuple[str, int]]
NAMED = {"named": (tensor_modules.named, tensor_modules.words)}
NAMES = {"allreduce": "all_reduce"}


def gradients(case: str, words: str, fault: Callable[[], Any] | None = None) -> dict[str, Any]:
    """What one rank finds: the worst difference of a gradient, what was sent, what was said."""
    import torch

    from armillary.axes import discover
    from armillary.axes.compose import computing
    from armillary.axes.partial import add_up_gradients
    from armillary.spec import Layout
    from armillary.spec.layouts import Layouts
    from armillary.step.parallel import apply_layout, plain
    from armillary.step.world import join

    make, example = (tensor_modules.CASES | NAMED)[case]
    layout, x = Layout.parse(words), example()
    with join(layout, "cpu") as world, (fault or torch.enable_grad)():
        serial, model = made(make), made(make)
        mine = x.chunk(world.batch_count)[world.batch_index]
        model, graph = apply_layout(model, world, layout, lambda m: m(x), len(x))
        torch.manual_seed(1)
        tensor_modules.loss_of(serial(x), x).backward()
        torch.manual_seed(1)
        with computing(model), counting() as sent:
            tensor_modules.loss_of(model(mine), mine).backward()
            add_up_gradients(model.parameters())
        table = Layouts.of(layout, num_samples=len(x))
        return {
            "distance": worst(
                {name: plain(p.grad) for name, p in model.named_parameters()},
                {name: p.grad for name, p in serial.named_parameters()},
            ),
            "sent": in_words(sent),
            "said": said(discover()["tensor"].traffic(graph, table)),
            "share": float(discover()["tensor"].divides(graph, table).parameters[0]),
            "held": held(model),
        }


def made(make: Any) -> Any:
    import torch

    torch.manual_seed(0)
    return make().double()


def held(model: Any) -> float:
    """What part of the bytes of all parameters this rank holds."""
    parameters = list(model.parameters())
    ours = sum(p.to_local().nbytes if hasattr(p, "to_local") else p.nbytes for p in parameters)
    return ours / sum(p.numel() * p.element_size() for p in parameters)


def worst(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, str]:
    """The largest relative difference of a gradient and its name; none is missing."""
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if ours[n] is None] == [n for n in theirs if theirs[n] is None]
    known = {name: gradient for name, gradient in theirs.items() if gradient is not None}
    least = 0.01 * max(float(gradient.abs().max()) for gradient in known.values())
    return max(
        (float((ours[n] - g).abs().max() / g.abs().max().clamp(min=least)), n)
        for n, g in known.items()
    )


def said(transfers: Any) -> Sent:
    found: Sent = Counter()
    for transfer in transfers:
        if times := round(float(transfer.per_step[0])):
            found[transfer.collective, round(float(transfer.bytes[0]))] += times
    return found


def in_words(sent: list[tuple[str, int, int]]) -> Sent:
    """Collectives by torch's name and the bytes of the whole tensor, and how often."""
    found: Sent = Counter()
    for name, size, num_bytes in sent:
        is_part = name in ("all_gather_into_tensor", "all_to_all_single")
        found[NAMES.get(name, name), num_bytes * (size if is_part else 1)] += 1
    return found


def counting() -> Any:
    """A context that lists the collectives of a rank: (kind, ranks of the group, local bytes).

    torch's CommDebugMode gives every module a copy of what it takes, which changes what is sent.
    """
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _resolve_process_group
    from torch.distributed.tensor import DTensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counting(TorchDispatchMode):
        def __enter__(self) -> Any:
            super().__enter__()
            self.sent: list[tuple[str, int, int]] = []
            return self.sent

        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if DTensor in types:
                return NotImplemented
            name = op.overloadpacket.__name__.strip("_")
            if "c10d" in op.namespace and "wait" not in name and "wrap" not in name:
                leaves = [leaf for leaf in tree_leaves(args) if hasattr(leaf, "nbytes")]
                group = _resolve_process_group(args[-1]) if isinstance(args[-1], str) else None
                size = dist.get_world_size(group) if group is not None else 0
                self.sent.append((name, size, leaves[0].nbytes))
            return op(*args, **(kwargs or {}))

    return Counting()


def check(ranks: Ranks, case: str, words: str, fault: Any = None) -> list[dict[str, Any]]:
    from armillary.spec import Layout

    return ranks.run(Layout.parse(words).num_ranks, gradients, case, words, fault)


@pytest.mark.parametrize("case", sorted(tensor_modules.CASES))
def test_gradients_and_messages_are_as_promised(ranks: Ranks, case: str) -> None:
    for found in check(ranks, case, "tensor=2"):
        assert found["distance"][0] <= TOLERANCE, found
        assert found["sent"] == found["said"]
        assert found["held"] == pytest.approx(found["share"]) and found["held"] < 1


def test_a_recipe_may_name_its_splits(ranks: Ranks) -> None:
    """Whatever is named: the gradients are the serial program's."""
    from armillary.models.splits import find_splits

    words = tensor_modules.words()
    splits, _ = find_splits(tensor_modules.named(), lambda m: m(words), len(words))
    kinds = {split.path: split.kind for split in splits}
    assert not any(path.startswith("layers.0.attention") for path in kinds)
    assert kinds["layers.0.feed_forward.down.weight"] == "column"
    for found in ranks.run(2, gradients, "named", "tensor=2"):
        assert found["distance"][0] <= TOLERANCE, found
        assert found["held"] == pytest.approx(found["share"])


def test_a_style_or_path_that_is_not_there_is_refused() -> None:
    from armillary.models.named_splits import name_splits
    from armillary.models.splits import find_splits
    from armillary.spec import SpecError

    model, words = tensor_modules.named(), tensor_modules.words()
    with pytest.raises(SpecError, match="a style is one of colwise, rowwise, replicate"):
        name_splits(model, {"head": "column"})
    name_splits(model, {"layer.0.attention": "colwise"})
    with pytest.raises(SpecError, match="fits no module that holds a weight"):
        find_splits(model, lambda m: m(words), len(words))


FOUR = [
    *((case, "tensor=4") for case in ("tied", "view", "fused gate", "torch layer", "field")),
    *((case, "data=2,tensor=2") for case in ("chunk", "again", "field", "by hand")),
    *((case, "sharded=2,tensor=2") for case in ("separate", "tied", "torch layer", "lstm")),
]
OPTIONS = [
    *((case, "tensor=2,tensor.loss=vocabulary") for case in ("separate", "tied")),
    *((case, "tensor=2,tensor.norms=cut") for case in ("separate", "tied", "torch layer")),
]


@pytest.mark.parametrize(("case", "words"), FOUR + OPTIONS)
def test_products_and_options(ranks: Ranks, case: str, words: str) -> None:
    for found in check(ranks, case, words):
        assert found["distance"][0] <= TOLERANCE, found
        assert not found["said"] - found["sent"]
        if words.startswith("tensor"):
            assert found["sent"] == found["said"]


@pytest.mark.parametrize(
    "words",
    [
        "tensor=2,recompute=full",
        "tensor=2,recompute=selective",
        "sharded=2,tensor=2,recompute=full",
        "tensor=2,micro_batch_size=3",
    ],
)
def test_training_gives_the_serial_numbers(bench: Bench, words: str) -> None:
    """A tied transformer with torch's own attention: losses, clipped norms, parameters."""
    ours = bench.train("blocks", f"{words},precision=float64")
    theirs = bench.train("blocks", "precision=float64")
    assert largest_relative(ours.losses, theirs.losses) <= TOLERANCE
    norms = ours.column("grad_norm"), theirs.column("grad_norm")
    assert largest_relative(*norms) <= TOLERANCE
    # AdamW divides a key bias' gradient, which is zero but for rounding, by itself
    assert distance(ours.parameters(), theirs.parameters()) <= 1e-9


def test_dropout_draws_what_the_serial_program_draws(ranks: Ranks) -> None:
    """Alike where activations are whole, each unit its own where they are cut."""
    for case in ("dropout", "dropout layer"):
        for found in check(ranks, case, "tensor=2"):
            assert found["distance"][0] <= TOLERANCE, found


def draws(words: str) -> Any:
    """Dropped entries of a cut and of a whole tensor, this rank's part of each."""
    import torch
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from armillary.axes.regions.mode import Regions
    from armillary.spec import Layout
    from armillary.step.world import join

    with join(Layout.parse(words), "cpu") as world:
        assert world.mesh is not None
        torch.manual_seed(0)
        ones = torch.ones(64, 64)
        with Regions("tensor")():
            found = []
            for placement in (Shard(1), Replicate()):
                x = distribute_tensor(ones, world.mesh, [placement], src_data_rank=None)
                kept = torch.nn.functional.dropout(x, 0.5)
                found.append(kept.to_local().numpy())
        return found


def test_cut_tensors_drop_entries_of_their_own(ranks: Ranks) -> None:
    import numpy as np

    (cut, whole), (other_cut, other_whole) = ranks.run(2, draws, "tensor=2")
    assert np.array_equal(whole, other_whole)
    agreeing = np.mean((cut > 0) == (other_cut > 0))
    assert abs(agreeing - 0.5) < 5 * 0.5 / cut.size**0.5  # five standard deviations
    assert abs(np.mean(cut > 0) - 0.5) < 5 * 0.5 / cut.size**0.5


def _patched(name: str, replacement: Any) -> Any:
    from unittest.mock import patch

    return patch(f"armillary.axes.{name}", replacement)


def _as_partial_unsummed(cut: Any, tensor: Any, token_dim: int) -> Any:
    """The sums of a row taken for whole, as a forgotten all-reduce would."""
    from torch.distributed.tensor import Replicate

    return cut.joined(tensor.to_local(), tensor, cut.placed(tensor, Replicate()), tensor.shape)


def _unsummed_entry(cut: Any, tensor: Any) -> Any:
    """What enters a region, with the partial gradient of this rank's units taken for the whole."""
    entered = cut.laid(tensor, tensor.placements[cut.mesh_dim(tensor)]) * 1

    def mislabel(gradient: Any) -> Any:
        return cut.joined(gradient.to_local(), tensor, tensor.placements, tensor.shape)

    entered.register_hook(mislabel)
    return entered


def _summed_twice(cut: Any, tensor: Any, token_dim: int) -> Any:
    from torch.distributed.tensor import Replicate

    return cut.laid(tensor, Replicate()) * 2


def _swapped_pieces(cut: Any, x: Any, dim: int, sizes: Any) -> Any:
    """The pieces of a fused projection cut as they lie, each rank taking a run of features."""
    import torch

    local = x.to_local().split([size // 2 for size in sizes], dim)
    shape = [*x.shape[:-1], sizes[0]]
    assert len(set(sizes)) == 1 and isinstance(local[0], torch.Tensor)
    return tuple(cut.joined(part, x, x.placements, shape) for part in local)


def _same_draws(cut: Any, function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return cut.joined(function(x.to_local(), *args, **kwargs), x, x.placements, x.shape)


def _wrong_first_word(cut: Any, weight: Any, dim: int = 0) -> tuple[int, int]:
    number = weight.shape[dim] // 2
    return (1 - weight.device_mesh.get_local_rank()) * number, number


FAULTS = {
    "a row is not summed": ("separate", "regions.mode.Cut.left", _as_partial_unsummed),
    "a row is summed twice": ("separate", "regions.mode.Cut.left", _summed_twice),
    "an entering gradient is not summed": ("by hand", "regions.mode.Cut.entered", _unsummed_entry),
    "pieces are not exchanged": ("chunk", "regions.pieces.exchange", _swapped_pieces),
    "words of the other rank": ("tied", "regions.vocabulary._words", _wrong_first_word),
    "ranks drop the same units": ("dropout", "maps.HANDLERS", {"dropout": _same_draws}),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_is_seen(ranks: Ranks, fault: str) -> None:
    """The comparison can fail: each of these makes some gradient wrong."""
    case, name, replacement = FAULTS[fault]
    found = check(ranks, case, "tensor=2", partial(_faulty, name, replacement))
    assert max(f["distance"][0] for f in found) > 1e-3, found


def _faulty(name: str, replacement: Any) -> Any:
    from unittest.mock import patch

    if isinstance(replacement, dict):
        import armillary.axes.regions.maps

        return patch.dict(armillary.axes.regions.maps.HANDLERS, replacement)
    return _patched(name, replacement)
