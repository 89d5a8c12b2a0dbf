"""Planners on the same runs and the same searches: `python -m benchmarks.planners`.

    python -m benchmarks.planners --calculon FOLDER --llm-analysis PYTHON [--multi FILE]

Without a peer's option its columns stay empty: FOLDER is a copy of Calculon's repository, PYTHON an
interpreter that has llm-analysis (docs/planners.md says how to get both). Every planner runs in a
process of its own on one thread; times are CPU times. Results go to benchmarks/results.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from armillary.plan.runs import Run, read_runs
from benchmarks.planners.asked import ask
from benchmarks.planners.errors import errors_of
from benchmarks.planners.page import page
from benchmarks.planners.questions import question_of

HERE = Path(__file__).parent
DATA = HERE.parent / "data"
RESULTS = HERE.parent / "results"
SEARCHES: Mapping[str, dict[str, Any]] = {
    "GPT-3 175B, 1,024 A100, batch 1,536": {
        "family": "gpt:layers=96,hidden=12288,heads=96,seq=2048,vocab=51200",
        "application": {
            "hidden": 12288,
            "feedforward": 49152,
            "seq_size": 2048,
            "attn_heads": 96,
            "attn_size": 128,
            "num_blocks": 96,
        },
        "num_devices": 1024,
        "global_batch_size": 1536,
    },
    "Megatron 1T, 3,072 A100, batch 3,072": {
        "family": "gpt:layers=128,hidden=25600,heads=160,seq=2048,vocab=51200",
        "application": {
            "hidden": 25600,
            "feedforward": 102400,
            "seq_size": 2048,
            "attn_heads": 160,
            "attn_size": 160,
            "num_blocks": 128,
        },
        "num_devices": 3072,
        "global_batch_size": 3072,
    },
}
OURS = {
    "every choice and placement": {"num_orders": 4, "offloads": False},
    "and what lies on the host": {"num_orders": 4, "offloads": True},
}
"""Our searches: what their grids hold besides degrees, micro batches, schedules and the like."""


def main() -> None:
    """Ask all, print the tables and write them."""
    chosen = _arguments()
    results: dict[str, Any] = {"taken": _taken(chosen), "errors": {}, "searches": {}}
    if "errors" in chosen.parts:
        for title, runs in _sets(chosen).items():
            results["errors"][title] = _errors(runs, _planners(chosen))
            print(title, json.dumps(results["errors"][title]), flush=True)
    if "searches" in chosen.parts:
        for title, problem in SEARCHES.items():
            results["searches"][title] = _searches(problem, chosen)
            print(title, json.dumps(results["searches"][title]), flush=True)
    text = page(results)
    print(text)
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "planners.json").write_text(json.dumps(results, indent=1) + "\n")
        (chosen.out / "planners.md").write_text(text, encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planners", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["errors", "searches"], metavar="PART")
    parser.add_argument("--calculon", type=Path, default=os.environ.get("CALCULON"))
    parser.add_argument("--llm-analysis", default=os.environ.get("LLM_ANALYSIS"))
    parser.add_argument("--single", type=Path, default=DATA / "vtrain_single_node.csv")
    parser.add_argument("--multi", type=Path, help="a table of measured runs of several nodes")
    parser.add_argument("--runs", type=Path, default=DATA / "published_runs.csv")
    parser.add_argument("--sampled", type=int, default=3000, help="of Calculon's configurations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--no-out", dest="out", action="store_const", const=None)
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - {"errors", "searches"}:
        parser.error(f"no part {', '.join(sorted(unknown))}: choose of errors, searches")
    if chosen.calculon and not (Path(chosen.calculon) / "calculon/llm/llm.py").is_file():
        parser.error(f"--calculon: {chosen.calculon} is no copy of its repository")
    return chosen


def _taken(chosen: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.__main__ import _processor

    versions = {}
    if chosen.calculon:
        versions["Calculon"] = _said("git", "-C", str(chosen.calculon), "rev-parse", "HEAD")[:7]
    if chosen.llm_analysis:
        line = "import importlib.metadata as m; print(m.version('llm-analysis'))"
        versions["llm-analysis"] = _said(chosen.llm_analysis, "-c", line)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "sampled": chosen.sampled,
        "seed": chosen.seed,
        "versions": versions,
    }


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "of unknown version"


def _sets(chosen: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs to be predicted, by title; a table that is not there is told of and left out."""
    found = {"Megatron's 8 runs (Calculon's own)": DATA / "megatron_validation.csv"}
    found["vTrain, single node"] = chosen.single
    if chosen.multi:
        found["vTrain, several nodes"] = chosen.multi
    sets = {}
    for title, path in found.items():
        if path.is_file():
            sets[title] = [run for run in read_runs(path)[0] if run.step_s]
        else:
            print(f"left out: {title}, there is no {path}", file=sys.stderr)
    if chosen.runs.is_file():
        sets["published, dense transformers of quality A"] = [
            run
            for run in read_runs(chosen.runs)[0]
            if run.kind == "dense-transformer"
            and run.quality == "A"
            and run.outcome == "ok"
            and run.step_s
        ]
    return sets


def _planners(chosen: argparse.Namespace) -> dict[str, tuple[str, Path, dict[str, Any]]]:
    """Interpreter, file and words of every planner that there is."""
    found: dict[str, tuple[str, Path, dict[str, Any]]] = {}
    found["armillary"] = (sys.executable, HERE / "own.py", {"task": "predict"})
    if chosen.calculon:
        words = {"task": "predict", "path": str(chosen.calculon)}
        found["Calculon"] = (sys.executable, HERE / "peer_calculon.py", words)
    if chosen.llm_analysis:
        script = HERE / "peer_llm_analysis.py"
        found["llm-analysis, as it comes"] = (chosen.llm_analysis, script, {"efficiency": None})
        found["llm-analysis, efficiency 0.5"] = (chosen.llm_analysis, script, {"efficiency": 0.5})
    return found


def _errors(runs: list[Run], planners: Mapping[str, Any]) -> dict[str, Any]:
    """The errors of every planner, and ours on the runs that it can be asked about."""
    questions = [question_of(run) for run in runs]
    own = [asdict(run) for run in runs]
    measured_s = [run.step_s for run in runs]
    told = {
        name: ask(interpreter, script, words | {"runs": own if name == "armillary" else questions})
        for name, (interpreter, script, words) in planners.items()
    }
    ours = told["armillary"]["seconds"]
    found = {}
    for name, answer in told.items():
        both = [
            mine if theirs is not None else None
            for mine, theirs in zip(ours, answer["seconds"], strict=True)
        ]
        found[name] = {
            "errors": asdict(errors_of(measured_s, answer["seconds"])),
            "ours_on_the_same": asdict(errors_of(measured_s, both)),
            "why": answer["why"],
            "per_s": answer["per_s"],
            "peak_bytes": answer["peak_bytes"],
        }
    return found


def _searches(problem: Mapping[str, Any], chosen: argparse.Namespace) -> dict[str, Any]:
    """Ours, and Calculon's sample of its own space."""
    found: dict[str, Any] = {
        name: ask(sys.executable, HERE / "own.py", {"task": "search"} | dict(problem) | words)
        for name, words in OURS.items()
    }
    if chosen.calculon:
        words = {
            "task": "search",
            "path": str(chosen.calculon),
            "system": "a100_80g",
            "num_sampled": chosen.sampled,
            "seed": chosen.seed,
        }
        found["Calculon"] = ask(sys.executable, HERE / "peer_calculon.py", dict(problem) | words)
    return found


if __name__ == "__main__":
    main()
