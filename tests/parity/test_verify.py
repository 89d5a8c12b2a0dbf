"""`armillary verify` and `armillary.verify` as a person uses them: the words, one's own code."""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import armillary
from armillary import axes, cli
from armillary.axes import discover
from armillary.models import read
from armillary.spec import Layout, SpecError
from armillary.step.recipe import load_recipe
from armillary.train.request import new_request
from armillary.verify.check import EQUAL, Checker
from armillary.verify.compare import compare
from armillary.verify.matrix import layouts, table
from armillary.verify.prepare import prepare
from armillary.verify.program import Trace, run
from armillary.verify.proof import BEGIN, END
from armillary.verify.proving import of_plan
from armillary.verify.ranks import Ranks
from armillary.verify.shrink import LEAST_BLOCKS
from tests.contract.test_axes import TOY
from tests.fault.test_plan_errors import PLAN
from tests.parity.ranks import train_as_rank
from tests.parity.runs import CASES, Bench, Result, largest_relative

MLP, WRONG_LOSS = str(CASES / "mlp.py"), str(CASES / "sabotage_loss.py")


# ------------------------------------------------------------------------------ one's own code
def small_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 1)).double()


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    x_BD = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x_BD, x_BD.prod(1, keepdim=True)


def serial_loop() -> nn.Module:
    """Seven samples, one step; batch norm is in evaluation mode, so that it is left out."""
    model, (x, y) = small_model().eval(), samples()
    nn.functional.mse_loss(model(x), y).backward()
    return model


def _on_ranks(weigh: bool) -> nn.Module:
    """The rank's part of the seven samples; a mean over ranks, each weighed by its part or not."""
    model, (x, y) = small_model().eval(), samples()
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    mine = slice(len(x) * rank // num_ranks, len(x) * (rank + 1) // num_ranks)
    loss = nn.functional.mse_loss(model(x[mine]), y[mine])
    part = len(x[mine]) * num_ranks / len(x) if weigh else 1.0
    (loss * part).backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= num_ranks
    return model


def right_loop() -> nn.Module:
    return _on_ranks(weigh=True)


def mean_of_means() -> nn.Module:
    return _on_ranks(weigh=False)


def forgets_to_reduce() -> nn.Module:
    model, (x, y) = small_model().eval(), samples()
    nn.functional.mse_loss(model(x[dist.get_rank() :: 2]), y[dist.get_rank() :: 2]).backward()
    return model


def serial_sum() -> dict[str, Any]:
    return {"sum": torch.arange(6.0).sum(), "each": np.arange(3)}


def doubled_sum() -> dict[str, Any]:
    return {"sum": 2 * torch.arange(6.0).sum(), "each": np.arange(3)}


def raises() -> nn.Module:
    raise ValueError("no such file")


def test_a_right_loop_of_one_s_own_is_equal() -> None:
    verdict = armillary.verify(serial_loop, right_loop, ranks=2)
    assert verdict and verdict.equal
    assert str(verdict).startswith("equal: 15 tensors")


def test_a_mean_of_means_is_not() -> None:
    """3 and 4 samples: the worst gradient is some percent off, and the verdict says which."""
    verdict = armillary.verify(serial_loop, mean_of_means, ranks=2)
    assert not verdict
    worst = verdict.differences[0]
    assert worst.kind == "gradient" and 1e-3 < worst.difference < 1
    assert worst.name in str(verdict) and str(verdict).startswith("wrong: ")
    right = [d for d in verdict.differences if d.kind == "parameter"]
    assert all(d.difference == 0.0 for d in right), "nothing was updated"


def test_ranks_that_disagree_are_said_to() -> None:
    verdict = armillary.verify(serial_loop, forgets_to_reduce, ranks=2)
    assert "copies differ along ranks" in verdict.differences[0].pattern


def test_a_mapping_is_compared_by_name() -> None:
    verdict = armillary.verify(serial_sum, doubled_sum, ranks=2)
    wrong = [d for d in verdict.differences if d.difference > 0]
    assert [d.name for d in wrong] == ["sum"]
    assert wrong[0].pattern.startswith("2 times the right one")


@pytest.mark.parametrize(
    ("parallel", "said"),
    [(lambda: small_model(), "cannot be sent"), (raises, "no such file"), (print, "NoneType")],
)
def test_functions_that_cannot_serve_are_refused(parallel: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        armillary.verify(serial_loop, parallel, ranks=2)


# ----------------------------------------------------------------------------------- the words
class Said:
    """What `armillary verify WORDS` printed, and its exit code."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def told(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> "Said":
        monkeypatch.setattr(sys, "argv", ["armillary", "verify", *self.words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        self.code = ended.value.code
        self.out, self.err = capsys.readouterr()
        return self


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: Said(*words).told(monkeypatch, capsys)


def test_an_equal_layout_ends_with_0(say: Any) -> None:
    found = say(MLP, "--layout", "data=2", "--layout", "sharded=2")
    assert found.code == 0
    assert "433 parameters (at its full size)" in found.out
    assert found.out.count("equal") == 2


def test_a_wrong_layout_ends_with_4_and_is_reported(say: Any, tmp_path: Path) -> None:
    """The loss depends on the rank: the page, the JSON and the terminal say where it shows."""
    readme = tmp_path / "table.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    out = tmp_path / "proof"
    found = say(
        WRONG_LOSS, "--layout", "data=2", "--out", str(out), "--table", str(readme), "--json"
    )
    assert found.code == 4
    [proof] = json.loads(found.out)
    assert proof == json.loads((out / "verify.json").read_text())[0]
    [finding] = proof["findings"]
    assert not proof["holds"] and finding["state"] == "wrong" and finding["suspects"] == ["data"]
    assert finding["differences"][0]["kind"] == "gradient"
    page = (out / "report.html").read_text()
    assert "suspected: data" in page and "0 layouts equal, 1 wrong" in page
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "WRONG: sabotage_loss" in text


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        ("time.perf_counter()", "gives other numbers when it is run again"),
        ("float('nan')", "the serial loss of step 1 is nan"),
        ("(model.training and 1 / 0)", "the serial program fails: ZeroDivisionError"),
    ],
)
def test_a_program_that_is_no_yardstick_is_refused(
    say: Any, tmp_path: Path, noise: str, said: str
) -> None:
    """No layout is called wrong for what the serial program does by itself."""
    path = tmp_path / "noisy.py"
    path.write_text(
        Path(MLP).read_text()
        + f"""
import time
quiet = loss

def loss(model, batch):
    return quiet(model, batch) * (1 + {noise} * model.training)
"""
    )
    found = say(str(path), "--layout", "data=2", "--steps", "1")
    assert found.code == 2 and said in found.err + found.out


def test_a_wrong_layout_is_named_on_a_terminal(say: Any) -> None:
    found = say(WRONG_LOSS, "--layout", "data=2", "--steps", "1")
    assert found.code == 4
    assert "suspected: data" in found.out and "gradient" in found.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layout", "diagonal=2"], "unknown axis"),
        (["--layout", "expert=2"], "has no routed experts"),
        (["--layout", "sharded.zero=4,sharded=2"], "sharded.zero is one of"),
        ([], "a layout is named, or --all"),
        (["--all", "1"], "on 2 to 64 local ranks"),
        (["--plan", "nowhere.json"], "nowhere.json"),
        (["--layout", "data=64,sharded=4"], "--layout data=2,sharded=2"),
        (["--layout", "data=2", "--set", "width=wide"], "width"),
    ],
)
def test_a_refusal_ends_with_2_before_a_rank_starts(
    say: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("a rank was started")

    monkeypatch.setattr(Ranks, "_grow_to", never)
    found = say(MLP, *words)
    assert found.code == 2 and said in found.err + found.out


@pytest.mark.parametrize(
    ("words", "batch", "proven"),
    [
        ("data=64,sharded=4,micro_batch_size=4", 4096, "data=2,sharded=2,micro_batch_size=1"),
        ("data=64,sharded=4,micro_batch_size=4", 1024, "data=2,sharded=2"),
        ("sharded=8,micro_batch_size=4", 64, "sharded=8,micro_batch_size=4"),
    ],
)
def test_the_plan_of_a_machine_is_proven_by_its_axes(
    tmp_path: Path, words: str, batch: int, proven: str
) -> None:
    """At degree 2 if it is of many ranks, and in micro batches where it makes several."""
    plan = replace(PLAN, layout=Layout.parse(words), global_batch_size=batch)
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    assert str(of_plan(path)) == proven


def test_a_table_without_its_marks_is_refused(say: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    found = say(MLP, "--layout", "data=2", "--table", str(page))
    assert found.code == 2 and "has no place for the table" in found.err
    assert page.read_text() == "no marks\n"


# ---------------------------------------------------------------------------------- reduced size
def test_a_recipe_without_tiny_is_shrunk_and_keeps_its_structure(say: Any) -> None:
    """Width, heads and depth are halved while it runs; what was shrunk is printed."""
    recipe = load_recipe(str(CASES / "sabotage_wide.py"))
    prepared = prepare(recipe)
    whole = read(recipe.model())
    assert prepared.graph.num_parameters < 0.05 * whole.num_parameters
    assert LEAST_BLOCKS <= len(prepared.graph.blocks) <= len(whole.blocks)
    smaller = prepared.program.smaller
    assert smaller["hidden_size"] < 256 and "tanh" not in smaller
    assert "hidden_size 256 -> " in prepared.shrunk
    found = say(str(recipe.source), "--layout", "data=2")
    assert found.code == 0 and "hidden_size 256 -> " in found.out


def test_dropout_is_off_so_that_steps_can_be_compared(say: Any) -> None:
    found = say(MLP, "--layout", "data=2", "--set", "dropout=0.5")
    assert found.code == 0


def test_what_a_model_draws_is_held_so_that_steps_can_be_compared(say: Any) -> None:
    found = say(str(CASES / "noise.py"), "--layout", "data=2,recompute=full")
    assert found.code == 0, found.out


# --------------------------------------------------------------------------------- a new axis
def with_toy(folder: str, function: Any, *args: Any) -> Any:
    """`function(*args)` in a process that finds one more axis in `folder`."""
    if folder not in axes.__path__:
        axes.__path__.append(folder)
        discover.cache_clear()
    try:
        return function(*args)
    finally:
        axes.__path__.remove(folder)
        discover.cache_clear()
        sys.modules.pop("armillary.axes.toy", None)


def test_a_seventh_axis_is_one_file(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is among the layouts, in the matrix, is proven alone and beside another, and trains."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(axes, "__path__", [*axes.__path__, str(tmp_path)])
    discover.cache_clear()
    try:
        assert {"toy=2", "data=2,toy=2"} <= {str(layout) for layout in layouts(4)}
        job = functools.partial(with_toy, str(tmp_path), run)
        checker = Checker(prepare(load_recipe(MLP)), ranks, job=job)
        found = [checker.check(Layout.parse(words)) for words in ("toy=2", "data=2,toy=2")]
        assert [finding.state for finding in found] == [EQUAL, EQUAL], found
        rows = table({"mlp": found})
        assert rows[0][-1] == rows[-1][0] == "toy" and rows[-1][-1] == "mlp"
        words = Layout.parse("data=2,toy=2,precision=float64")
        request = new_request(MLP, layout=words, runs=tmp_path, quiet=True, trackers=())
        ended = ranks.run(4, with_toy, str(tmp_path), train_as_rank, request, tmp_path)
        serial = Bench(ranks, tmp_path).train("mlp", "precision=float64")
        assert largest_relative(Result(*ended[0]).losses, serial.losses) < 1e-10
    finally:
        monkeypatch.undo()
        discover.cache_clear()
        sys.modules.pop("armillary.axes.toy", None)


# -------------------------------------------------------------------------------- the yardstick
def traces(gradients: list[dict[str, Any]]) -> list[Trace]:
    return [Trace(gradients={n: np.array(t) for n, t in each.items()}) for each in gradients]


def patterns(ours: list[Any], right: Any, layout: str) -> list[str]:
    found = compare(
        traces([{"w": each} for each in ours]), traces([{"w": right}])[0], Layout.parse(layout)
    )
    return [d.pattern for d in found if d.name == "w"]


def test_a_gradient_that_is_zero_by_symmetry_is_no_fault() -> None:
    """Its rounding is measured by a hundredth of the model's largest entry."""
    right = traces([{"w": [1.0, 2.0], "bias": [1e-17, -2e-17]}])[0]
    ours = traces([{"w": [1.0, 2.0], "bias": [3e-17, 1e-17]}] * 2)
    assert max(d.difference for d in compare(ours, right, Layout.parse("data=2"))) < 1e-14


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([4.0, 2.0, 8.0, 6.0], "2 times the right one: a factor of the degree"),
        ([0.5, 0.25, 1.0, 0.75], "1/4 times the right one: a factor of the degree"),
        ([6.0, 3.0, 12.0, 9.0], "3 times the right one"),
        ([4.0, 3.0, 2.0, 1.0], "a permuted shard"),
        ([2.0, 1.0, 7.0, 8.0], "the part of one rank"),
        ([0.0, 0.0, 0.0, 0.0], "the contribution is lost"),
        ([np.nan, 1.0, 4.0, 3.0], "not finite"),
        ([9.0, 1.5, 7.0, -3.0], "no multiple"),
        ([2.0, 1.0], "shape"),
    ],
)
def test_what_an_error_looks_like(ours: list[float], said: str) -> None:
    for pattern in patterns([ours] * 4, [2.0, 1.0, 4.0, 3.0], "data=2,tensor=2"):
        assert said in pattern


def test_copies_that_differ_name_the_axis() -> None:
    copies = [[1.0], [1.0], [2.0], [2.0]]
    [pattern] = patterns(copies, [1.5], "data=2,sharded=2")
    assert "copies differ along data:" in pattern
    [pattern] = patterns(copies, [1.5], "sharded=2,data=2")
    assert "copies differ along sharded:" in pattern


def test_a_value_that_was_not_updated_is_stale() -> None:
    """A buffer as it was before the first step, and a norm that is the step before's."""
    right = Trace(
        buffers={"mean": np.array([1.0, 2.0])}, begun={"mean": np.array([0.5, 4.0])}, norms=[3.0, 2]
    )
    ours = Trace(buffers={"mean": np.array([0.5, 4.0])}, norms=[3.0, 3.0])
    found = compare([ours, ours], right, Layout.parse("data=2"))
    wrong = {(d.kind, d.name): d.pattern for d in found if d.difference > 0}
    assert wrong.keys() == {("buffer", "mean"), ("norm", "step 2")}
    assert all("stale" in pattern for pattern in wrong.values())
    other = Trace(buffers={"mean": np.array([0.5, 3.0])}, norms=[3.0, 4.0])
    found = compare([other, other], right, Layout.parse("data=2"))
    assert not any("stale" in d.pattern for d in found)


def test_a_tensor_that_no_rank_holds_is_missing() -> None:
    right = traces([{"w": [1.0]}])[0]
    [found] = [d for d in compare(traces([{}, {}]), right, Layout.parse("data=2")) if d.name == "w"]
    assert found.difference == np.inf and found.pattern == "missing"
