"""The plates recipe: finite elements that are right, graphs batched as one, a network that fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from armillary.audit import compare
from armillary.recipes import gnn
from tests.parity.runs import Bench, distance, largest_relative


@pytest.fixture(scope="module")
def splits() -> dict[str, list[gnn.Plate]]:
    return gnn.data(num_plates=160)


def square_mesh(num_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """A unit square, its inner points shaken, in triangles."""
    rng = np.random.default_rng(num_cells)
    number = np.arange((num_cells + 1) ** 2).reshape(num_cells + 1, num_cells + 1)
    points = np.stack(np.nonzero(number >= 0), axis=1) / num_cells
    inner = ((points > 0) & (points < 1)).all(axis=1)
    points[inner] += rng.uniform(-0.15, 0.15, (inner.sum(), 2)) / num_cells
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    halves = [[a, b, d], [a, d, c]]
    return points, np.concatenate([np.stack(h, axis=-1).reshape(-1, 3) for h in halves])


def test_the_file_is_short_enough_to_copy() -> None:
    assert len(Path(gnn.__file__).read_text().splitlines()) <= 220


def test_the_solver_nears_a_known_temperature_with_the_square_of_the_spacing() -> None:
    """u = cos(pi x) cos(2 pi y) has no flow through the edges of the unit square."""

    def error(num_cells: int) -> float:
        points, triangles = square_mesh(num_cells)
        exact = np.cos(np.pi * points[:, 0]) * np.cos(2 * np.pi * points[:, 1])
        source = (0.03 * 5 * np.pi**2 + gnn.LOSS) * exact
        matrix, area = gnn.system(points, triangles, np.full(len(points), 0.03))
        return float(np.sqrt(area @ (np.linalg.solve(matrix, area * source) - exact) ** 2))

    coarse, fine = error(15), error(30)
    assert fine < 0.004
    assert 3 < coarse / fine < 5


def test_a_linear_temperature_flows_as_on_paper() -> None:
    """On any mesh u = 2 + 3 y carries the energy 9 k A; a constant carries none."""
    points, triangles = gnn.mesh(np.random.default_rng(1))
    matrix, area = gnn.system(points, triangles, np.full(len(points), 0.7))
    conduction = matrix - np.diag(gnn.LOSS * area)
    u = 2 + 3 * points[:, 0]
    assert u @ conduction @ u == pytest.approx(9 * 0.7 * area.sum())
    assert np.abs(conduction.sum(axis=1)).max() < 1e-12


def test_no_triangle_is_turned_over_and_meshes_differ() -> None:
    sizes = set()
    for seed in range(40):
        points, triangles = gnn.mesh(np.random.default_rng(seed))
        p, q, r = points[triangles].transpose(1, 2, 0)
        turned = (q - p)[0] * (r - p)[1] - (q - p)[1] * (r - p)[0]
        assert abs(turned).min() > 0.1 and len(set(np.sign(turned))) == 1
        assert np.array_equal(np.unique(triangles), np.arange(len(points)))
        sizes.add(len(points))
    assert len(sizes) > 20 and min(sizes) > 25 and max(sizes) < 170


def test_what_is_put_in_is_what_is_lost(splits: dict[str, list[gnn.Plate]]) -> None:
    for plate in splits["test"]:
        source, _, area = plate["nodes"].double().T
        lost = gnn.LOSS * area @ plate["temperature"].double()
        assert float(lost) == pytest.approx(float(source @ area), rel=1e-5)
        assert plate["temperature"].min() > -1e-3 * plate["temperature"].max()


def test_edges_go_both_ways_and_to_neighbours_only(splits: dict[str, list[gnn.Plate]]) -> None:
    plate = splits["train"][3]
    ends = set(map(tuple, plate["ends"].T.tolist()))
    assert len(ends) == plate["ends"].shape[1] and ends == {(b, a) for a, b in ends}
    torch.testing.assert_close(
        plate["edges"][:, :2], plate["points"][plate["ends"][1]] - plate["points"][plate["ends"][0]]
    )
    assert plate["edges"][:, 2].max() < 2.2


def test_every_plate_is_drawn_anew_and_always_the_same(
    splits: dict[str, list[gnn.Plate]],
) -> None:
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 120,
        "validation": 20,
        "test": 20,
    }
    plates = {p["temperature"].numpy().tobytes() for split in splits.values() for p in split}
    assert len(plates) == 160
    again = gnn.data(num_plates=9)["train"][4]["temperature"]
    assert torch.equal(again, splits["train"][4]["temperature"])


def test_a_batch_is_its_plates_side_by_side(splits: dict[str, list[gnn.Plate]]) -> None:
    model, plates = gnn.tiny().double(), splits["train"][:4]
    doubled = [
        {k: v.double() if v.is_floating_point() else v for k, v in p.items()} for p in plates
    ]
    together = gnn.predict(model, gnn.collate(doubled))
    assert together["forecast"].shape == (4, max(together["lengths"]))
    assert together["points"].shape == (4, max(together["lengths"]), 2)
    alone = [gnn.collate([plate]) for plate in doubled]
    for i, batch in enumerate(alone):
        expected = gnn.predict(model, batch)["forecast"][0]
        torch.testing.assert_close(together["forecast"][i, : len(expected)], expected)
    total, count = gnn.loss(model, gnn.collate(doubled))
    sums, counts = zip(*(gnn.loss(model, batch) for batch in alone), strict=True)
    torch.testing.assert_close(total, torch.stack(sums).sum())
    assert count == sum(counts) == int(together["lengths"].sum())


def test_the_names_of_points_do_not_matter(splits: dict[str, list[gnn.Plate]]) -> None:
    plate, model = gnn.collate(splits["train"][:1]), gnn.tiny()
    order = torch.randperm(len(plate["nodes"]))
    renamed = model(plate["nodes"][order], plate["edges"], order.argsort()[plate["ends"]])
    found = model(plate["nodes"], plate["edges"], plate["ends"])
    torch.testing.assert_close(renamed, found[order], atol=1e-5, rtol=1e-4)


def test_rivals_come_in_the_order_that_physics_knows(splits: dict[str, list[gnn.Plate]]) -> None:
    rivals = gnn.rivals(splits)
    found = {name: gnn.metrics(rival)["relative_rmse"] for name, rival in rivals.items()}
    assert found["training mean"] == pytest.approx(1.0, abs=0.05)
    assert 0.2 < found["averages over neighbours"] < 0.5
    assert 0.3 < found["Jacobi's method"] < 0.5
    one = gnn.rivals(gnn.data(num_plates=8))["training mean"]
    assert one["forecast"].shape == (1,) and one["forecast"][0].shape == one["temperature"][0].shape


@pytest.mark.slow
def test_a_short_training_beats_every_rival(splits: dict[str, list[gnn.Plate]]) -> None:
    torch.manual_seed(0)
    model = gnn.model(hidden_size=24)
    optimizer, losses = gnn.optimizer(model.parameters()), []
    scheduler = gnn.scheduler(optimizer, 24 * 20)
    loader = DataLoader(splits["train"], 6, shuffle=True, collate_fn=gnn.collate)  # type: ignore[arg-type]
    for _ in range(24):
        for batch in loader:
            optimizer.zero_grad()
            total, count = gnn.loss(model, batch)
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), gnn.settings["clip_norm"])
            optimizer.step()
            scheduler.step()
            losses.append(total.item() / count)
    assert np.mean(losses[-20:]) < 0.15 * np.mean(losses[:20])
    with torch.no_grad():
        found = [gnn.predict(model, gnn.collate([plate])) for plate in splits["test"]]
    predictions = {
        name: gnn.rows([one[name][0] for one in found]) for name in found[0] if name != "lengths"
    }
    rivals = gnn.rivals(splits)
    for rival in rivals.values():
        assert rival.keys() == predictions.keys()
        for ours, theirs in zip(predictions["temperature"], rival["temperature"], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    document = compare(predictions, rivals, gnn.metrics, num_resamples=200)
    for gap in document["metrics"]["relative_rmse"]["rivals"].values():
        assert gap["excludes_zero"] and gap["difference"] < 0
    (figure,) = gnn.figures(predictions, rivals).values()
    assert len(figure.data) == 3 and len(figure.data[0].x) == max(map(len, predictions["forecast"]))


def test_two_ranks_give_the_serial_numbers(bench: Bench) -> None:
    """In float64, on ranks whose plates have unequal numbers of points, an uneven last step."""
    words = {"hidden_size": 8, "num_layers": 2, "num_plates": 24}
    words |= {"epochs": 2, "global_batch_size": 7}
    serial = bench.train(gnn.__file__, "precision=float64", **words)
    for layout in ("data=2", "sharded=2,micro_batch_size=2"):
        ours = bench.train(gnn.__file__, f"{layout},precision=float64", **words)
        assert largest_relative(ours.losses, serial.losses) <= 1e-10
        assert distance(ours.parameters(), serial.parameters()) <= 1e-10
        assert ours.evaluations[-1]["metrics"] == pytest.approx(serial.evaluations[-1]["metrics"])
        predictions, expected = ours.folder.predictions("test"), serial.folder.predictions("test")
        assert predictions is not None and expected is not None
        for mine, theirs in zip(predictions["forecast"], expected["forecast"], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9)
