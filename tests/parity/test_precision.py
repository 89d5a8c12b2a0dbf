"""What a lower precision, a compiler and loading processes change: as much as they say."""

import pytest
import torch

from armillary.spec import Layout
from armillary.step.recipe import load_recipe
from armillary.verify.prepare import prepare
from armillary.verify.program import run
from tests.parity.ranks import Ranks
from tests.parity.runs import Bench, Result, distance


@pytest.fixture(scope="module")
def float32(bench: Bench) -> Result:
    return bench.train("mlp", "")


@pytest.mark.parametrize("layout", ["", "data=2", "sharded=2"])
@pytest.mark.parametrize(("precision", "largest"), [("bfloat16", 3e-2), ("float16", 4e-3)])
def test_half_precision_lands_near_float32(
    bench: Bench, float32: Result, layout: str, precision: str, largest: float
) -> None:
    """Losses within 8 and 11 bits of mantissa, some steps on; parameters stay float32."""
    ours = bench.train("mlp", f"{layout},precision={precision}")
    assert ours.losses != float32.losses
    assert ours.losses == pytest.approx(float32.losses, rel=largest)
    assert {tensor.dtype for tensor in ours.parameters().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("gpt", "tensor=2,tensor.norms=cut,tensor.loss=vocabulary"),
        ("gpt", "pipeline=2,micro_batch_size=4"),
        ("moe", "expert=2,sequence=2"),
        ("cnn", "sequence=2,tensor=2"),
    ],
)
def test_what_is_sent_in_16_bits_changes_no_more_than_rounding(
    ranks: Ranks, recipe: str, words: str
) -> None:
    """Losses and norms in bfloat16 on ranks are those of bfloat16 on one, to its 8 bits."""
    program = prepare(load_recipe(recipe)).program
    layout = Layout.parse(f"{words},precision=bfloat16")
    alone = Layout(precision="bfloat16", micro_batch_size=layout.micro_batch_size)
    ours = ranks.run(layout.num_ranks, run, program, layout)[0]
    (theirs,) = ranks.run(1, run, program, alone)
    assert ours.losses == pytest.approx(theirs.losses, rel=2e-3)
    assert ours.norms == pytest.approx(theirs.norms, rel=2e-2)


@pytest.mark.parametrize("layout", ["", "data=2", "sharded=2"])
def test_an_overflow_in_float16_skips_the_step_on_every_rank(bench: Bench, layout: str) -> None:
    """The first steps overflow until the scale is small enough; all samples are in every step."""
    ours = bench.train("overflow", f"{layout},precision=float16")
    assert ours.exit_code == 0
    first, last = ours.losses[0], ours.losses[-1]
    assert ours.losses[1] == pytest.approx(first, rel=1e-3), "the first step was skipped"
    assert last < 0.99 * first


def test_float16_resumes_bitwise_with_its_scale(bench: Bench) -> None:
    whole = bench.train("overflow", "data=2,precision=float16")
    stopped = bench.train("overflow", "data=2,precision=float16", stop_after=3)
    assert bench.resume(stopped.path).losses == whole.losses


@pytest.mark.parametrize("layout", ["data=2", ""])
def test_loading_processes_change_nothing(bench: Bench, layout: str) -> None:
    """Neither the samples nor their random augmentation, nor the loss's own random numbers."""
    ours = bench.train("augmented", layout, num_workers=2)
    theirs = bench.train("augmented", layout, num_workers=0)
    assert ours.losses == theirs.losses
    assert [e["loss"] for e in ours.evaluations] == [e["loss"] for e in theirs.evaluations]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["", "data=2"])
def test_a_compiled_model_gives_the_same_numbers(bench: Bench, layout: str) -> None:
    ours = bench.train("mlp", f"{layout},precision=float64,compile=true")
    theirs = bench.train("mlp", f"{layout},precision=float64")
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-10)
    assert distance(ours.parameters(), theirs.parameters()) <= 1e-10
