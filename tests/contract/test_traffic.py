"""What `traffic` of the axes says is what a real step sends: kind, group, count and bytes.

Every axis alone and every pair of two, at degree 2, on three recipes at their smallest size and
real gloo ranks; besides, with blocks recomputed and with options of axes and recipes. Totals over
all ranks are compared by collective and group: counts are equal, bytes within `TOLERANCE`.
"""

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import pytest

from armillary.axes import Transfer, admit, discover
from armillary.spec import Layout
from armillary.spec.layouts import Layouts
from tests.contract.recorded import NUM_STEPS, Message, record
from tests.parity.ranks import Ranks

RECIPES = ("gpt", "moe", "cnn")
NUM_SAMPLES, NUM_MICRO_BATCHES = 8, 2
"""Of a micro batch of a rank in a pipeline, and how many there are; elsewhere one has them all."""
TOLERANCE = 0.01
PADDING = {"cnn": 0.05}
"""FSDP2 pads dim 0 of every parameter to a multiple of the shards; cnn's head has one channel."""

Key = tuple[str, tuple[str, ...]]
Totals = dict[Key, tuple[float, float]]  # count and bytes

RECOMPUTED = {
    "gpt": ("sharded,tensor", "pipeline,tensor", "sequence,tensor"),
    "moe": ("expert,sequence", "expert,sharded", "pipeline,sharded"),
}
"""Pairs of axes beside which blocks are recomputed, in addition to every axis alone."""
OPTIONS = (
    ("gpt", "tensor=2,recompute=selective"),
    ("gpt", "tensor=2,tensor.norms=cut"),
    ("gpt", "sequence=2,sequence.attention=heads"),
    ("moe", "expert=2,tensor=2,tensor.norms=cut"),
    ("moe attention=latent", "sequence=2,tensor=2"),
    ("moe balance=loss", "sequence=2"),
    ("moe capacity_factor=1.25", "sequence=2"),
    ("moe balance=loss", "tensor=2,tensor.norms=cut"),
    ("cnn network=unet", "sequence=2,tensor=2"),
)
"""Recipes, with what they are told, and layouts."""
NARROW = (
    ("gpt", "pipeline=2,tensor=2"),
    ("gpt", "sequence=2,tensor=2"),
    ("gpt", "tensor=2,tensor.norms=cut"),
    ("gpt", "tensor=2,tensor.loss=vocabulary"),
    ("moe", "expert=2,sequence=2"),
    ("cnn", "pipeline=2,tensor=2"),
    ("cnn", "sequence=2,tensor=2"),
)
"""The same in bfloat16, where autocast narrows some of what is sent and not the rest."""


def words_of(*names: str) -> str:
    """A layout of these axes at degree 2, in the order of a mesh."""
    axes = discover()
    return ",".join(f"{name}=2" for name in sorted(names, key=lambda name: axes[name].order))


def cases() -> list[tuple[str, str]]:
    """Every axis alone and every pair, with experts only where a model has some."""
    names = sorted(discover())
    chosen = [(name,) for name in names] + [*combinations(names, 2)]
    return [
        (recipe, words_of(*some))
        for recipe in RECIPES
        for some in chosen
        if recipe == "moe" or "expert" not in some
    ]


def recomputed() -> list[tuple[str, str]]:
    """Every axis alone and some pairs, with all blocks recomputed."""
    return [
        (recipe, f"{words_of(*some)},recompute=full")
        for recipe, pairs in RECOMPUTED.items()
        for some in [*((name,) for name in sorted(discover())), *(p.split(",") for p in pairs)]
        if recipe == "moe" or "expert" not in some
    ]


@cache
def _prepared(recipe: str, batch_size: int) -> Any:
    from armillary.step.recipe import load_recipe
    from armillary.verify.prepare import prepare

    name, *options = recipe.split()
    loaded = load_recipe(name, dict(option.split("=") for option in options))
    return prepare(loaded, num_steps=NUM_STEPS + 1, batch_size=batch_size)


def as_run(words: str) -> tuple[Layout, int]:
    """The layout, in float64 unless it names a precision, in a pipeline with several micro batches;
    and samples of a step.
    """
    named = "" if "precision=" in words else ",precision=float64"
    layout = Layout.parse(f"{words}{named}")
    if "pipeline" not in layout.degrees:
        return layout, NUM_SAMPLES * NUM_MICRO_BATCHES
    from armillary.step.world import count_shares

    batch_size = NUM_SAMPLES * NUM_MICRO_BATCHES * count_shares(layout)
    return replace(layout, micro_batch_size=NUM_SAMPLES), batch_size


def found(by_rank: list[Counter[Message]]) -> Totals:
    """Count and bytes of what all ranks sent, by collective and group."""
    totals: Totals = {}
    for sent in by_rank:
        for message, count in sent.items():
            _add(totals, (message.collective, message.group), count, count * message.bytes)
    return totals


def said(graph: Any, layout: Layout, batch_size: int) -> Totals:
    """The same as the axes tell it.

    A "send" is told for all ranks of a pipeline together; of a "batch_isend_irecv" the size of the
    whole, of which each rank sends its part.
    """
    num_micro_batches = NUM_MICRO_BATCHES if layout.micro_batch_size else 1
    table = Layouts.of(
        layout,
        num_samples=batch_size // num_micro_batches,
        num_micro_batches=num_micro_batches,
    )
    totals: Totals = {}
    for name in layout.degrees:
        for t in discover()[name].traffic(graph, table):
            size, count = float(t.bytes[0]), float(t.per_step[0]) * layout.num_ranks
            kind, size = t.collective, size * _width(t, layout)
            if kind == "batch_isend_irecv":
                kind, size = "send", size / layout.degree(name)
            elif kind == "send":
                count /= layout.degree(name)
            if size and count:
                group = tuple(axis for axis in layout.degrees if axis in t.group)
                _add(totals, (kind, group), count, count * size)
    return totals


def _width(told: Transfer, layout: Layout) -> float:
    """Bytes as sent for each byte of a graph that was read in float64."""
    if layout.precision == "float64" or told.carries == "counts":
        return 1.0
    return 2 / 8 if told.carries == "activations" and not told.is_wide else 4 / 8


def _add(totals: Totals, key: Key, count: float, size: float) -> None:
    before = totals.get(key, (0.0, 0.0))
    totals[key] = before[0] + count, before[1] + size


def untrue(sent: Totals, told: Totals, tolerance: float) -> dict[Key, str]:
    """What is not as told, in words."""
    wrong = {}
    for key in sorted(sent.keys() | told.keys()):
        ours, theirs = sent.get(key, (0.0, 0.0)), told.get(key, (0.0, 0.0))
        is_count = abs(ours[0] - theirs[0]) < 1e-6 * max(ours[0], 1.0)
        if not is_count or abs(ours[1] - theirs[1]) > tolerance * theirs[1]:
            wrong[key] = (
                f"sent {ours[0]:g} of {ours[1]:g} bytes in all, told {theirs[0]:g} of {theirs[1]:g}"
            )
    return wrong


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        *cases(),
        *recomputed(),
        *OPTIONS,
        *((recipe, f"{words},precision=bfloat16") for recipe, words in NARROW),
    ],
)
def test_the_axes_send_what_they_say(ranks: Ranks, recipe: str, words: str) -> None:
    layout, batch_size = as_run(words)
    prepared = _prepared(recipe, batch_size)
    admit(layout, prepared.graph)
    sent = found(ranks.run(layout.num_ranks, record, prepared.program, str(layout)))
    assert sent, "nothing was recorded"
    padding = PADDING.get(recipe, 0.0) if "sharded" in layout.degrees else 0.0
    wrong = untrue(sent, said(prepared.graph, layout, batch_size), TOLERANCE + padding)
    assert not wrong, "\n".join(f"{key} {what}" for key, what in wrong.items())


def test_a_difference_is_seen() -> None:
    """One message more, other bytes, another group and another kind are each untrue."""
    key: Key = ("all_reduce", ("data",))
    told: Totals = {key: (4.0, 4000.0)}
    assert not untrue({key: (4.0, 4030.0)}, told, TOLERANCE)
    assert untrue({key: (5.0, 4000.0)}, told, TOLERANCE).keys() == {key}
    assert untrue({key: (4.0, 4100.0)}, told, TOLERANCE).keys() == {key}
    for other in (("all_reduce", ("tensor",)), ("reduce_scatter_tensor", ("data",))):
        assert untrue({other: (4.0, 4000.0)}, told, TOLERANCE).keys() == {key, other}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_table_is_its_rows(recipe: str) -> None:
    """A table of many layouts is told what each of them is told alone."""
    graph = _prepared(recipe, NUM_SAMPLES * NUM_MICRO_BATCHES).graph
    told = [*cases(), *recomputed(), *OPTIONS]
    rows = [Layout.parse(words) for name, words in told if name == recipe]
    rows += [Layout.parse(words) for words in MORE]
    many = Layouts.of(*rows, num_samples=8, num_micro_batches=4)
    for name, axis in discover().items():
        table = _sent_in_rows(axis.traffic(graph, many), rows)
        for i, row in enumerate(rows):
            alone = Layouts.of(row, num_samples=8, num_micro_batches=4)
            assert [table[i]] == _sent_in_rows(axis.traffic(graph, alone), [row]), (name, str(row))


MORE = (
    "pipeline=2,sharded=2,sharded.zero=2",
    "pipeline=2,sharded=2,tensor=2,pipeline.schedule=interleaved_1f1b",
    "data=2,sharded=2,sharded.zero=1",
    "tensor=2,tensor.norms=cut",
    "tensor=4,tensor.loss=vocabulary",
    "sequence=4,sequence.attention=heads",
)


def _sent_in_rows(transfers: Any, rows: list[Layout]) -> list[list[tuple[Any, ...]]]:
    """What is sent in every row, in order, by the axes that have more than one rank there."""
    return [
        sorted(
            (
                t.collective,
                tuple(axis for axis in t.group if row.degree(axis) > 1),
                t.path,
                float(t.bytes[i]),
                float(t.per_step[i]),
            )
            for t in transfers
            if t.bytes[i] and t.per_step[i]
        )
        for i, row in enumerate(rows)
    ]
