"""Our loop beside torch by hand, Accelerate and Fabric: seconds a step, as ratios."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import ABSENT, CONTENDERS
from benchmarks.ratios import ratio_of, turned_pairs
from benchmarks.turns import Contender

OURS = "armillary"
MEASURES = ("wall", "cpu")
LAYOUTS = ("data=1", "data=2", "sharded=2")
NUM_WARM_UP_BLOCKS = 2
CASES = {"gpt": 4, "lstm": 4, "line": 50}  # steps a block


def measure(
    num_launches: int, num_rounds: int, cases: list[str], layouts: list[str]
) -> list[dict[str, Any]]:
    """One row a case and layout: times, ratios and losses of every contender."""
    rows = []
    for case in cases:
        for layout in layouts:
            if case == "line" and layout.startswith("sharded"):
                continue  # nine parameters have nothing to shard
            launches = [_launch(case, layout, num_rounds, i) for i in range(num_launches)]
            rows.append(_row(case, layout, launches))
            print(_words(rows[-1]), flush=True)
    return rows


def _launch(case: str, layout: str, num_rounds: int, first: int) -> dict[str, Any]:
    """One start of all contenders, of which `first` goes first: blocks [wall_s, cpu_s], losses.

    Blocks go in the order A B C D, D C B A, and so on.
    """
    num_ranks, block = int(layout.partition("=")[2]), CASES[case]
    num_steps = (NUM_WARM_UP_BLOCKS + num_rounds) * block + 1
    names = [n for n in CONTENDERS if (n, layout.partition("=")[0]) not in ABSENT]
    first %= len(names)
    blocks: dict[str, list[list[float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        contenders = [
            Contender(
                name,
                ["-m", "benchmarks.loop_rank", name, case, layout, str(num_steps), folder],
                num_ranks,
                Path(folder) / f"{name}.log",
            )
            for name in names[first:] + names[:first]
        ]
        try:
            for contender in contenders:
                contender.start()
            for i in range(NUM_WARM_UP_BLOCKS + num_rounds):
                for contender in contenders if i % 2 == 0 else reversed(contenders):
                    spent = contender.run(block)
                    if i >= NUM_WARM_UP_BLOCKS:
                        blocks[contender.name].append([spent.wall_s, spent.cpu_s])
            losses = {c.name: c.finish()[0]["losses"] for c in contenders}
        finally:
            for contender in contenders:
                contender.stop()
    return {"block": block, "blocks": blocks, "losses": losses, "load_after": os.getloadavg()[0]}


def _row(case: str, layout: str, launches: list[dict[str, Any]]) -> dict[str, Any]:
    names = list(launches[0]["blocks"])
    steps = 2 * launches[0]["block"]
    pairs = {
        name: {
            measure: [
                s / steps
                for launch in launches
                for s in turned_pairs([b[i] for b in launch["blocks"][name]])
            ]
            for i, measure in enumerate(MEASURES)
        }
        for name in names
    }
    losses = {name: launches[0]["losses"][name] for name in names}
    return {
        "case": case,
        "layout": layout,
        "num_launches": len(launches),
        "load_after": [launch["load_after"] for launch in launches],
        "step_s": {n: {m: float(np.median(pairs[n][m])) for m in MEASURES} for n in names},
        "ratio": {
            n: {m: ratio_of(pairs[OURS][m], pairs[n][m]).to_dict() for m in MEASURES}
            for n in names
            if n != OURS
        },
        "extra_s": {
            n: float(np.median(np.subtract(pairs[OURS]["cpu"], pairs[n]["cpu"])))
            for n in names
            if n != OURS
        },
        "last_loss": {name: losses[name][-1] for name in names},
        "largest_loss_difference": {
            name: _largest_difference(losses[OURS], losses[name]) for name in names
        },
        "pairs": pairs,
    }


def _largest_difference(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two losses at a step, relative to the first loss."""
    return float(np.max(np.abs(np.subtract(ours, theirs))) / abs(ours[0]))


def _words(row: dict[str, Any]) -> str:
    parts = [f"{row['case']} {row['layout']}:"]
    for name, ratios in row["ratio"].items():
        shown = "  ".join(
            f"{m} {ratios[m]['median']:.3f} ({ratios[m]['low']:.3f} to {ratios[m]['high']:.3f})"
            for m in MEASURES
        )
        parts.append(
            f"  ours / {name}: {shown}  {row['extra_s'][name] * 1e3:+.2f} ms cpu  "
            f"losses agree to {row['largest_loss_difference'][name]:.0e}"
        )
    return "\n".join(parts)
