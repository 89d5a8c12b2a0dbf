"""`armillary.plan`, asked as its peers are: step times, and a search that leaves out nothing.

The search prices every layout with its memory and keeps the best, grid by grid; it does not scout,
as `armillary plan` does with as many.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.machines import for_run
from armillary.models import families
from armillary.plan import software
from armillary.plan.admitting import admit_choices
from armillary.plan.choices import Choices, Fixed, all_choices
from armillary.plan.dealing import grids, placed
from armillary.plan.folding import fold
from armillary.plan.grid import DIMS
from armillary.plan.offload import OFFLOADS
from armillary.plan.price import Priced, price
from armillary.plan.published import subject
from armillary.plan.rows import Refusals, find_rows
from armillary.plan.runs import Run
from armillary.spec import SpecError

CHUNK = 2**20
"""Layouts of a grid: of more the columns need more memory, of fewer NumPy has more calls."""
NUM_KEPT = 100
ON_DEVICE = OFFLOADS[:1]


def search(question: Mapping[str, Any]) -> dict[str, Any]:
    """How many layouts, of how many columns, were priced in how many seconds; and the best."""
    began_s = time.process_time()
    graph = fold(families.parse(question["family"]))
    machine = for_run("A100-SXM-80GB", 8, "Selene", question["num_devices"])
    program = software.load(question.get("software", "armillary"))
    batch = question["global_batch_size"]
    choices = _choices(question)
    rows = find_rows(graph, question["num_devices"], batch, {}, fewer=False)
    degrees, order, _ = placed(rows.degrees, choices.orders, machine.levels[0].num_ranks)
    kept, admitted = admit_choices(graph, degrees, order, choices, Refusals())
    best, counts = _Best(), dict.fromkeys(("layouts", "refused", "too_large"), 0)
    columns = dict.fromkeys(DIMS, 0)
    for grid, index in grids(degrees, order, choices, batch, CHUNK, kept):
        priced = price(graph, machine, program, grid, global_batch_size=batch)
        by_axes = admitted.refused(grid, index, batch)
        refused = np.isinf(priced.step_s)
        refused = refused if by_axes is None else refused | by_axes
        fits = (priced.memory_bytes <= machine.device.memory_bytes) & ~refused
        counts["layouts"] += grid.num_layouts
        counts["refused"] += int(np.count_nonzero(refused))
        counts["too_large"] += int(np.count_nonzero(~refused & ~fits))
        columns = {dim: max(columns[dim], len(grid.choices(dim))) for dim in DIMS}
        best.take(priced, fits)
    spent_s = time.process_time() - began_s
    columns["degrees"] = len(order)
    return {
        "num_layouts": counts["layouts"],
        "num_admitted": counts["layouts"] - counts["refused"],
        "num_fitting": counts["layouts"] - counts["refused"] - counts["too_large"],
        "columns": columns,
        "seconds": spent_s,
        "per_s": counts["layouts"] / spent_s,
        "best": best.told(),
    }


def _choices(question: Mapping[str, Any]) -> Choices:
    """Those of `armillary plan`, in half precision, with so many placements, and offloading."""
    from dataclasses import replace

    usual = all_choices(Fixed(), ("bfloat16",), wide=False)
    return replace(
        usual,
        orders=usual.orders[: question["num_orders"]],
        offloads=OFFLOADS if question["offloads"] else ON_DEVICE,
    )


class _Best:
    """The fastest layouts that fit, over grids."""

    def __init__(self) -> None:
        self.step_s = np.empty(0)
        self.layouts: list[tuple[float, float, str]] = []

    def take(self, priced: Priced, fits: NDArray[np.bool_]) -> None:
        """Take up those of a grid that are among the fastest so far."""
        step_s = np.where(fits, priced.step_s, np.inf).ravel()
        number = min(NUM_KEPT, len(step_s))
        chosen = np.argpartition(step_s, number - 1)[:number]
        worst = self.layouts[-1][0] if len(self.layouts) == NUM_KEPT else np.inf
        for place in chosen[step_s[chosen] < worst]:
            dim = int(np.unravel_index(place, priced.grid.shape)[DIMS.index("offload")])
            words = f"{priced.grid.layout(int(place))}, offload {priced.grid.offloads[dim]}"
            memory = float(priced.memory_bytes.ravel()[place])
            self.layouts.append((float(step_s[place]), memory, words))
        self.layouts = sorted(self.layouts)[:NUM_KEPT]

    def told(self) -> list[tuple[float, float, str]]:
        """Seconds, bytes and words of the three fastest."""
        return self.layouts[:3]


def predict(question: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a step of every run, None where it has none."""
    seconds: list[float | None] = []
    why: dict[str, int] = {}
    began_s = time.process_time()
    for run in question["runs"]:
        try:
            asked = subject(Run(**run))
            priced = price(
                asked.graph,
                asked.machine,
                asked.software,
                asked.grid,
                global_batch_size=asked.global_batch_size,
            )
            step_s = float(priced.step_s.item())
            seconds.append(step_s if np.isfinite(step_s) else None)
            said = "" if np.isfinite(step_s) else "a layout that is refused"
        except (SpecError, ValueError) as error:
            seconds.append(None)
            said = str(error).splitlines()[0][:80]
        if said:
            why[said] = why.get(said, 0) + 1
    spent_s = time.process_time() - began_s
    return {"seconds": seconds, "why": why, "per_s": len(seconds) / max(spent_s, 1e-9)}


def answers(question: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a question of either kind."""
    return (search if question["task"] == "search" else predict)(question)


if __name__ == "__main__":
    from asked import answer

    answer(answers)
