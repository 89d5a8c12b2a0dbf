"""Every discovered axis keeps the promise of its doors, whatever its name."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armillary import axes
from armillary.axes import admit, discover
from armillary.spec import Block, Layout, ModelGraph, SpecError
from armillary.spec.layouts import Layouts
from tests.parity.ranks import Ranks

GRAPH = ModelGraph(
    name="m",
    num_parameters=120,
    parameter_bytes=480,
    blocks=(
        Block(path="blocks.0", num_parameters=50, parameter_bytes=200),
        Block(path="blocks.1", num_parameters=50, parameter_bytes=200),
    ),
)
NAMES = sorted(discover())
SHARES = ("parameters", "gradients", "optimizer_state", "samples")


def of_degrees(name: str, *degrees: int) -> Layouts:
    return Layouts.of(*(Layout(degrees={name: degree}) for degree in degrees))


@pytest.fixture(params=NAMES)
def axis(request: pytest.FixtureRequest) -> axes.Axis:
    return discover()[request.param]


def test_an_axis_has_the_name_it_is_found_by(axis: axes.Axis) -> None:
    assert discover()[axis.name] is axis
    assert axis.name.isidentifier() and axis.name == axis.name.lower()
    assert set(axis.borrows) <= set(NAMES) - {axis.name}
    assert isinstance(axis.splits_batch, bool)


def test_degree_1_costs_nothing(axis: axes.Axis) -> None:
    """It refuses nothing, divides by 1 and sends nothing, also for a model with batch norm."""
    alone = of_degrees(axis.name, 1)
    normed = ModelGraph(name="m", num_parameters=1, parameter_bytes=4, has_batch_norm=True)
    for graph in (GRAPH, normed):
        assert not any(refusal.refused.any() for refusal in axis.admits(graph, alone))
    shares = axis.divides(GRAPH, alone)
    assert all(getattr(shares, name).tolist() == [1.0] for name in SHARES)
    for transfer in axis.traffic(GRAPH, alone):
        assert (transfer.bytes * transfer.per_step).tolist() == [0.0]


def test_the_doors_answer_a_row_for_every_layout(axis: axes.Axis) -> None:
    rows = of_degrees(axis.name, 1, 2, 3, 8)
    for refusal in axis.admits(GRAPH, rows):
        assert refusal.refused.shape == (4,) and refusal.refused.dtype == bool
        assert isinstance(refusal.reason, SpecError)
    shares = axis.divides(GRAPH, rows)
    for name in SHARES:
        assert getattr(shares, name).shape == (4,)
    for transfer in axis.traffic(GRAPH, rows):
        assert transfer.bytes.shape == transfer.per_step.shape == (4,)
        assert np.all(transfer.bytes >= 0) and np.all(transfer.per_step >= 0)
        assert axis.name in transfer.group


def test_a_table_is_its_rows(axis: axes.Axis) -> None:
    degrees = (1, 2, 5)
    table = axis.divides(GRAPH, of_degrees(axis.name, *degrees))
    for i, degree in enumerate(degrees):
        row = axis.divides(GRAPH, of_degrees(axis.name, degree))
        assert all(getattr(table, n)[i] == getattr(row, n)[0] for n in SHARES)


def test_what_is_shared_out_is_all_there_is(axis: axes.Axis) -> None:
    """A rank holds all of a thing, or the ranks' shares of it make the whole."""
    degrees = (2, 3, 8)
    shares = axis.divides(GRAPH, of_degrees(axis.name, *degrees))
    for name in SHARES:
        for share, degree in zip(getattr(shares, name), degrees, strict=True):
            assert share == 1.0 or math.isclose(share * degree, 1.0)
    if axis.splits_batch:
        assert all(shares.samples < 1.0)


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown axis"):
        admit(Layout(degrees={"diagonal": 1}))


TOY = """
import numpy as np
from armillary.axes.door import Shares

class Toy:
    name, borrows, splits_batch = "toy", (), False
    order, options, splits_module, sees_calls = 6, {}, False, False
    shares_parameters = False
    def admits(self, graph, layouts): return []
    def divides(self, graph, layouts):
        whole = np.ones(layouts.num_layouts)
        return Shares(parameters=whole, gradients=whole, optimizer_state=whole, samples=whole)
    def computes(self, op, layouts): return None
    def traffic(self, graph, layouts): return []
    def apply(self, module, mesh, layout, graph): return module

AXIS = Toy()
"""


def test_a_new_axis_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(axes, "__path__", [*axes.__path__, str(tmp_path)])
            discover.cache_clear()
            assert sorted(discover()) == sorted([*NAMES, "toy"])
            admit(Layout.parse("toy=2"), GRAPH)
            test_degree_1_costs_nothing(discover()["toy"])
            test_the_doors_answer_a_row_for_every_layout(discover()["toy"])
    finally:
        discover.cache_clear()
        sys.modules.pop("armillary.axes.toy", None)
    assert sorted(discover()) == NAMES


def _collectives_of_a_step(words: str) -> dict[str, int]:
    """How often each collective is issued in the forward and backward pass of one step."""
    import torch
    from torch.distributed.tensor.debug import CommDebugMode

    from armillary.step.parallel import apply_layout
    from armillary.step.world import join
    from tests.parity.cases import twice

    layout = Layout.parse(words)
    with join(layout, "cpu") as world:
        model = torch.nn.Sequential(twice.Layer(), twice.Layer(), torch.nn.Linear(6, 1))
        apply_layout(model, world, layout)
        for _ in range(2):  # the first steps also compare, set up and sort buckets
            model(torch.ones(3, 6)).sum().backward()
        with CommDebugMode() as counted:
            model(torch.ones(3, 6)).sum().backward()
        found = counted.get_comm_counts()
        return {str(name).rpartition(".")[2].strip("_"): n for name, n in found.items()}


@pytest.mark.parametrize("words", ["sharded=2", "data=2,sharded=2", "data=2"])
def test_an_axis_sends_what_it_says(ranks: Ranks, words: str) -> None:
    """The collectives of a real step on gloo ranks, counted, against `traffic`."""
    import torch

    from armillary.models import read
    from tests.parity.cases import twice

    layout = Layout.parse(words)
    graph = read(torch.nn.Sequential(twice.Layer(), twice.Layer(), torch.nn.Linear(6, 1)))
    assert len(graph.blocks) == 2
    said: dict[str, int] = {}
    for name in layout.degrees:
        for transfer in discover()[name].traffic(graph, Layouts.of(layout)):
            said[transfer.collective] = said.get(transfer.collective, 0) + int(transfer.per_step[0])
    for found in ranks.run(layout.num_ranks, _collectives_of_a_step, words):
        assert _in_torch_words(found) == said, found


def _in_torch_words(found: dict[str, int]) -> dict[str, Any]:
    """c10d's names as torch.distributed has them."""
    names = {
        "allgather_base": "all_gather_into_tensor",
        "reduce_scatter_base": "reduce_scatter_tensor",
        "allreduce": "all_reduce",
    }
    return {names.get(name, name): count for name, count in found.items() if count}
