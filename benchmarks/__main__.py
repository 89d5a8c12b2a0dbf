"""One command for all benchmarks: `python -m benchmarks [loops] [startup] [checkpoints]`.

Results go to benchmarks/results: results.json, results.md and loops.svg.
"""

import argparse
import importlib.metadata
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PARTS = ("loops", "startup", "checkpoints")
GOAL = 1.02


def main() -> None:
    """Measure what is asked for and write the results."""
    chosen = _arguments()
    machine, results = _machine(chosen), dict[str, Any]()
    if "startup" in chosen.parts:
        from benchmarks import startup

        results["startup"] = startup.measure(chosen.repeats)
    if "checkpoints" in chosen.parts:
        from benchmarks import checkpoints

        results["checkpoints"] = checkpoints.measure(chosen.saves)
    if "loops" in chosen.parts:
        from benchmarks import loops

        results["loops"] = loops.measure(
            chosen.launches, chosen.rounds, chosen.cases, chosen.layouts
        )
    machine["load_after"] = os.getloadavg()[0]
    results["taken"] = dict.fromkeys(chosen.parts, machine)
    _write(results, chosen.out)
    print(f"results in {chosen.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--cases", nargs="+", default=["gpt", "lstm", "line"])
    parser.add_argument("--layouts", nargs="+", default=["data=1", "data=2", "sharded=2"])
    parser.add_argument("--launches", type=int, default=3, help="starts of the ranks, each case")
    parser.add_argument("--rounds", type=int, default=16, help="blocks of each contender, a start")
    parser.add_argument("--repeats", type=int, default=7, help="starts of each program")
    parser.add_argument("--saves", type=int, default=15, help="saves of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    unknown = set(chosen.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    chosen.parts = chosen.parts or list(PARTS)
    return chosen


def _machine(chosen: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "command": f"python -m benchmarks {' '.join(chosen.parts)} --launches {chosen.launches} "
        f"--rounds {chosen.rounds} --repeats {chosen.repeats} --saves {chosen.saves}",
    } | {
        package.replace("-", "_"): importlib.metadata.version(package)
        for package in ("torch", "accelerate", "lightning-fabric")
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def _write(results: dict[str, Any], folder: Path) -> None:
    """Write what was measured; parts of the last results that were not measured anew stay."""
    from benchmarks.tables import page

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results = before | results | {"taken": before.get("taken", {}) | results["taken"]}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(page(results), encoding="utf-8")
    if "loops" in results:
        _plot(results["loops"], folder / "loops.svg")


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from benchmarks.plot import Dot, write_plot

    dots = [
        Dot(
            f"{row['case']}  {row['layout']}  against {name} ({measure})",
            measure,
            ratio[measure]["median"],
            ratio[measure]["low"],
            ratio[measure]["high"],
        )
        for row in rows
        if row["case"] != "line"
        for name, ratio in row["ratio"].items()
        for measure in ("cpu", "wall")
    ]
    if dots:
        write_plot(path, "One training step: our time / theirs", dots, GOAL)


if __name__ == "__main__":
    main()
