"""A table of layouts is its rows, however many, and no door of an axis looks at them one by one."""

import gc
import sys
from collections import Counter
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from armillary.axes import discover
from armillary.models import read
from armillary.recipes import cnn, gpt, moe
from armillary.spec import ModelGraph
from armillary.spec.layouts import Layouts

NUM_LAYOUTS, NUM_COMPARED = 100_000, 40
DOORS = ("admits", "divides", "traffic")
RECIPES = {"gpt": gpt, "moe": moe, "cnn": cnn}


@cache
def graph_of(recipe: str) -> ModelGraph:
    words = torch.zeros(2, 16, dtype=torch.long)
    batch: Any = {"tokens": words, "targets": words}
    if recipe == "cnn":
        batch = {"now": torch.zeros(2, 3, 32, 32), "later": torch.zeros(2, 32, 32)}
    module: Any = RECIPES[recipe]
    return read(module.tiny(), lambda model: module.loss(model, batch), 2)


def table(num_layouts: int) -> Layouts:
    """Layouts of all axes, with all that they may be told, drawn anew."""
    draw = np.random.default_rng(0)
    axes = discover()
    return Layouts(
        num_layouts=num_layouts,
        degrees={name: draw.choice([1, 2, 3, 4, 8], num_layouts) for name in axes},
        options={
            f"{name}.{option}": draw.choice(np.array(choices), num_layouts)
            for name, axis in axes.items()
            for option, choices in axis.options.items()
        },
        num_samples=draw.choice([8, 16, 96], num_layouts),
        num_micro_batches=draw.choice([1, 2, 6], num_layouts),
        recompute=draw.choice(np.array(["none", "selective", "full"]), num_layouts),
    )


def rows_of(layouts: Layouts, chosen: Any) -> Layouts:
    """Some rows of a table, in the order in which they are chosen."""
    return replace(
        layouts,
        num_layouts=len(chosen),
        degrees={axis: column[chosen] for axis, column in layouts.degrees.items()},
        options={name: column[chosen] for name, column in layouts.options.items()},
        num_samples=layouts.num_samples[chosen],
        num_micro_batches=layouts.num_micro_batches[chosen],
        recompute=layouts.recompute[chosen],
    )


def told(door: str, answer: Any, row: int) -> list[Any]:
    """What a door's answer says of one row."""
    if door == "divides":
        return [float(getattr(answer, field.name)[row]) for field in fields(answer)]
    if door == "admits":  # a reason's numbers are those of the smallest degree refused with it
        return sorted({(one.reason.where, one.reason.rule) for one in answer if one.refused[row]})
    return sorted(
        (t.collective, t.group, t.path, t.hidden_behind, t.carries, t.bytes[row], t.per_step[row])
        for t in answer
        if t.bytes[row] * t.per_step[row]
    )


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", sorted(discover()))
def test_a_large_table_is_its_rows(recipe: str, name: str) -> None:
    axis, graph, large = discover()[name], graph_of(recipe), table(NUM_LAYOUTS)
    chosen = np.random.default_rng(1).choice(NUM_LAYOUTS, NUM_COMPARED, replace=False)
    for door in DOORS:
        ask: Any = getattr(axis, door)
        answer = ask(graph, large)
        for row in chosen:
            alone = ask(graph, rows_of(large, [row]))
            assert told(door, answer, row) == told(door, alone, 0), (door, int(row))


@pytest.mark.parametrize("name", sorted(discover()))
def test_no_door_looks_at_rows_one_by_one(name: str) -> None:
    """As many functions are called for a table as for the same rows ten times over."""
    axis, rows = discover()[name], table(200)
    tenfold = rows_of(rows, np.tile(np.arange(200), 10))
    for door in DOORS:
        ask: Any = getattr(axis, door)
        ask(graph_of("moe"), rows)  # what is kept of it for later is kept now
        few, many = (calls_of(ask, graph_of("moe"), some) for some in (rows, tenfold))
        assert few == many, (door, few, many)


def calls_of(function: Any, *args: Any) -> int:
    """How many functions a call runs, those of NumPy and Python included; of garbage that happens
    to be collected meanwhile, none.
    """
    counts: Counter[str] = Counter()

    def note(frame: Any, event: str, arg: Any) -> None:
        counts[event] += 1

    before = sys.getprofile()
    gc.disable()
    sys.setprofile(note)
    try:
        function(*args)
    finally:
        sys.setprofile(before)
        gc.enable()
    return counts["call"] + counts["c_call"]


def test_a_loop_over_rows_is_seen() -> None:
    def by_rows(graph: ModelGraph, layouts: Layouts) -> list[str]:
        return [str(degree).strip() for degree in layouts.degree("data")]

    rows = table(20)
    tenfold = rows_of(rows, np.tile(np.arange(20), 10))
    graph = graph_of("gpt")
    assert calls_of(by_rows, graph, rows) < calls_of(by_rows, graph, tenfold)
