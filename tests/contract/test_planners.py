"""Are peers asked about a run in their own words, and is what they say compared rightly?"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from armillary.plan.runs import Run, read_runs
from benchmarks.planners import own, peer_calculon, peer_llm_analysis
from benchmarks.planners.asked import ask
from benchmarks.planners.errors import errors_of
from benchmarks.planners.page import page
from benchmarks.planners.questions import question_of

MEGATRON = Path("benchmarks/data/megatron_validation.csv")


@pytest.fixture
def runs() -> dict[str, Run]:
    """The eight runs that Calculon was validated on, by name."""
    return {run.id: run for run in read_runs(MEGATRON)[0]}


def asked(runs: dict[str, Run], name: str, **other: Any) -> dict[str, Any]:
    return question_of(runs[name]) | other


def test_the_eight_runs_are_those_of_the_paper(runs: dict[str, Run]) -> None:
    assert len(runs) == 8
    assert sum(run.step_s for run in runs.values()) == pytest.approx(287.19)
    assert all(run.tensor * run.pipeline == run.num_devices for run in runs.values())


def test_calculon_is_told_what_its_own_file_of_175b_says(runs: dict[str, Run]) -> None:
    question = asked(runs, "megatron-175B-selective")
    assert peer_calculon.refusal(question) == ""
    assert peer_calculon.application(question) == {
        "hidden": 12288,
        "feedforward": 49152,
        "seq_size": 2048,
        "attn_heads": 96,
        "attn_size": 128,
        "num_blocks": 96,
    }
    told = peer_calculon.execution(question)
    wanted = {
        "num_procs": 64,
        "tensor_par": 8,
        "pipeline_par": 8,
        "data_par": 1,
        "tensor_par_net": 0,
        "pipeline_par_net": 1,
        "batch_size": 64,
        "microbatch_size": 1,
        "activation_recompute": "attn_only",
        "pipeline_interleaving": 3,
        "tensor_par_comm_type": "rs_ag",
        "seq_par_ag_redo": True,
        "optimizer_sharding": False,
    }
    assert {name: told[name] for name in wanted} == wanted


def test_calculon_takes_the_fast_network_inside_a_node(runs: dict[str, Run]) -> None:
    inside = {"tensor": 2, "data": 2, "pipeline": 2, "num_devices": 8, "stages_per_rank": 1}
    told = peer_calculon.execution(asked(runs, "megatron-22B-full", **inside))
    assert [told[f"{name}_par_net"] for name in ("tensor", "data", "pipeline")] == [0, 0, 0]
    across = inside | {"data": 8, "num_devices": 32}
    told = peer_calculon.execution(asked(runs, "megatron-22B-full", **across))
    assert [told[f"{name}_par_net"] for name in ("tensor", "data", "pipeline")] == [0, 1, 1]


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "Trainium1"},
        {"sequence": 2},
        {"zero": 3},
        {"is_gated": True},
        {"kv_heads": 8},
        {"precision": "fp8"},
        {"schedule": "zb-1p"},
        {"layers": 47, "pipeline": 2, "num_devices": 16},
        {"micro_batch_size": 3},
        {"lacks": "vocab"},
    ],
)
def test_calculon_is_not_asked_what_it_has_no_words_for(
    runs: dict[str, Run], other: dict[str, Any]
) -> None:
    assert peer_calculon.refusal(asked(runs, "megatron-22B-full", **other))


def test_llm_analysis_is_told_the_run_in_its_words(runs: dict[str, Run]) -> None:
    question = asked(runs, "megatron-530B-selective")
    assert peer_llm_analysis.refusal(question) == ""
    told = peer_llm_analysis.model(question)
    assert (told["num_layers"], told["n_head"], told["hidden_dim"]) == (105, 128, 20480)
    assert peer_llm_analysis.degrees(question) == {
        "tp_size": 8,
        "pp_size": 35,
        "dp_size": 1,
        "sp_size": 8,
    }
    training = peer_llm_analysis.training(question)
    assert training["gradient_accumulation_steps"] == 280
    assert peer_llm_analysis.refusal(question | {"gpu": "Trainium1"})


def test_what_a_table_leaves_out_is_said(runs: dict[str, Run]) -> None:
    bare = question_of(Run(**{**_fields(runs["megatron-22B-full"]), **BARE}))
    assert (bare["data"], bare["stages_per_rank"], bare["recompute"]) == (1, 1, "none")
    assert bare["lacks"] == "vocab"
    assert peer_calculon.refusal(bare) == "no vocab in the table"


BARE = {"data": 0, "stages_per_rank": 0, "recompute": "", "vocab": 0, "zero": -1}


def _fields(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in run.__slots__}


def test_errors_are_relative_to_what_was_measured() -> None:
    found = errors_of([1.0, 2.0, 4.0, 5.0], [1.1, 1.0, None, 5.0])
    assert (found.num_asked, found.num_told) == (4, 3)
    assert found.mean == pytest.approx(20.0)
    assert found.median == pytest.approx(10.0)
    assert found.most == pytest.approx(50.0)
    assert found.bias == pytest.approx(-40.0 / 3.0)
    assert errors_of([1.0], [None]).num_told == 0


def test_a_planner_answers_in_a_process_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "one.py"
    folder = Path(own.__file__).parent
    script.write_text(
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "from asked import answer\n"
        "answer(lambda question: {'seconds': [question['x'] * 2]})\n"
    )
    found = ask(sys.executable, script, {"x": 21})
    assert found["seconds"] == [42]
    assert found["peak_bytes"] > 1e6
    script.write_text("raise SystemExit('no such planner')")
    with pytest.raises(RuntimeError, match="no such planner"):
        ask(sys.executable, script, {})


def test_peers_import_nothing_of_ours() -> None:
    for module in (peer_calculon, peer_llm_analysis):
        code = f"import runpy, sys; runpy.run_path({module.__file__!r}); " + (
            "print([name for name in sys.modules if name.startswith('armillary')])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "[]", done.stderr


def test_ours_finds_the_best_of_a_small_search() -> None:
    question = {
        "task": "search",
        "family": "gpt:layers=8,hidden=1024,heads=16,seq=1024,vocab=32000",
        "num_devices": 8,
        "global_batch_size": 32,
        "num_orders": 1,
        "offloads": True,
    }
    found = own.search(question)
    assert found["num_fitting"] <= found["num_admitted"] <= found["num_layouts"]
    assert found["columns"]["offload"] == 4
    step_s, memory_bytes, words = found["best"][0]
    assert step_s > 0 and 0 < memory_bytes < 80e9 and "micro_batch_size" in words


def test_the_page_tells_who_was_asked_and_what_was_left_out() -> None:
    errors = {"num_asked": 3, "num_told": 2, "mean": 1.0, "median": 1.0, "p90": 2.0, "most": 2.0}
    one = {
        "errors": errors | {"bias": -1.0},
        "ours_on_the_same": errors | {"bias": 0.0, "mean": 0.5},
        "why": {"no file for the device": 1},
        "per_s": 10.0,
        "peak_bytes": 1e8,
    }
    taken = {"date": "2026-01-01", "processor": "one", "num_cores": 2, "load": 1.0}
    taken |= {"python": "3.11", "versions": {"Calculon": "abc"}}
    text = page({"taken": taken, "errors": {"runs": {"Calculon": one}}, "searches": {}})
    assert "| runs | Calculon | 2/3 | 1.0 (0.5) |" in text
    assert "no file for the device 1" in text and "Calculon abc" in text
