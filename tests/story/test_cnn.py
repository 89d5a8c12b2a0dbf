"""The turbulence recipe: a solver that keeps what physics keeps, splits, rivals, both networks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from armillary.audit import compare
from armillary.recipes import cnn
from armillary.spec import SpecError
from tests.parity.runs import Bench, distance, largest_relative

AXIS = np.arange(cnn.SIZE) * 2 * np.pi / cnn.SIZE
Y, X = AXIS[:, None], AXIS[None]


@pytest.fixture(scope="module")
def splits() -> dict[str, list[cnn.Sample]]:
    return cnn.data(num_trajectories=48)


def large_eddies(seed: int) -> np.ndarray:
    """Vorticity [1, Y, X] of waves up to 3, so that products stay below the cut."""
    rng = np.random.default_rng(seed)
    field = sum(
        rng.normal() * np.cos(k * Y + m * X + rng.uniform(0, 6))
        for k in range(4)
        for m in (1, 2, 3)
    )
    return np.asarray(field)[None]


def test_the_file_is_short_enough_to_copy() -> None:
    assert len(Path(cnn.__file__).read_text().splitlines()) < 220


def test_the_velocity_turns_with_the_vorticity_and_has_no_source() -> None:
    w = large_eddies(0)
    y, x, _ = cnn.wave_numbers()
    v, u = (np.fft.rfft2(part) for part in cnn.velocity(np.fft.rfft2(w)))
    np.testing.assert_allclose(np.fft.irfft2(1j * x * v - 1j * y * u), w, atol=1e-12)
    assert np.abs(1j * x * u + 1j * y * v).max() < 1e-9


def test_square_vortices_decay_as_taylor_and_green_say() -> None:
    """cos 3x cos 3y moves itself nowhere: w = exp(-18 viscosity t) times its start."""
    start = (np.cos(3 * X) * np.cos(3 * Y))[None]
    frames = cnn.simulate(start, num_frames=5)[0]
    times = np.arange(5) * cnn.STEP * cnn.STEPS_A_FRAME
    exact = np.exp(-18 * cnn.VISCOSITY * times)[:, None, None] * start
    np.testing.assert_allclose(frames, exact, atol=1e-8)


def test_the_flow_carries_the_vorticity(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tiny step against -u.grad w, derived the plain way."""
    monkeypatch.setattr(cnn, "STEP", 1e-5)
    monkeypatch.setattr(cnn, "STEPS_A_FRAME", 1)
    before, after = cnn.simulate(w := large_eddies(1), num_frames=2, viscosity=0.0)[0]
    y, x, _ = cnn.wave_numbers()
    v, u = cnn.velocity(np.fft.rfft2(w))
    plain = -u * np.fft.irfft2(1j * x * np.fft.rfft2(w))
    plain -= v * np.fft.irfft2(1j * y * np.fft.rfft2(w))
    np.testing.assert_allclose((after - before) / 1e-5, plain[0], atol=1e-3 * np.abs(plain).max())


def test_without_viscosity_energy_and_enstrophy_stay() -> None:
    frames = cnn.simulate(large_eddies(2), num_frames=6, viscosity=0.0)[0]
    speeds = np.stack(cnn.velocity(np.fft.rfft2(frames)))
    energy, enstrophy = (speeds**2).sum(axis=(0, 2, 3)), (frames**2).sum(axis=(1, 2))
    assert np.abs(frames[-1] - frames[0]).max() > 0.5 * frames[0].std(), "it has moved"
    np.testing.assert_allclose(energy, energy[0], rtol=1e-3)
    np.testing.assert_allclose(enstrophy, enstrophy[0], rtol=1e-3)


def test_splits_hold_whole_trajectories(splits: dict[str, list[cnn.Sample]]) -> None:
    starts = cnn.NUM_FRAMES - cnn.LEAD
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 36 * starts,
        "validation": 6 * starts,
        "test": 6 * starts,
    }
    firsts = {s["now"][0].numpy().tobytes() for split in splits.values() for s in split[::starts]}
    assert len(firsts) == 48
    test = splits["test"]
    assert torch.equal(test[cnn.LEAD]["now"][0], test[0]["later"])
    assert cnn.data(8)["test"][3]["later"].equal(cnn.data(8)["test"][3]["later"])
    assert 0.5 < torch.stack([s["now"] for s in splits["train"]]).std() < 2, "of order one"


def test_rivals_come_in_the_order_that_physics_knows(splits: dict[str, list[cnn.Sample]]) -> None:
    found = {n: cnn.metrics(r)["relative_rmse"] for n, r in cnn.rivals(splits).items()}
    assert found["persistence"] == pytest.approx(0.80, abs=0.06)
    assert found["linear in each wave"] == pytest.approx(0.63, abs=0.06)
    assert found["the equation with half the waves"] == pytest.approx(0.31, abs=0.04)


@pytest.mark.parametrize(("network", "shift"), [("resnet", 5), ("unet", 8)])
def test_a_shifted_flow_has_a_shifted_forecast(network: str, shift: int) -> None:
    """No edge, no preferred place; a U-Net halves the grid twice, so it shifts by fours."""
    model, now = cnn.tiny(network), torch.randn(2, 3, cnn.SIZE, cnn.SIZE)
    moved = model(now.roll((shift, -shift), (2, 3)))
    torch.testing.assert_close(moved, model(now).roll((shift, -shift), (2, 3)))


@pytest.mark.parametrize("network", ["resnet", "unet"])
def test_a_short_training_beats_the_linear_forecast(
    splits: dict[str, list[cnn.Sample]], network: str
) -> None:
    torch.manual_seed(0)
    model = cnn.model(network, num_channels=12, num_blocks=2)
    optimizer = cnn.optimizer(model.parameters())
    scheduler = cnn.scheduler(optimizer, 60)
    loader = DataLoader(splits["train"], 12, shuffle=True)  # type: ignore[arg-type]
    for _ in range(2):
        for batch in islice(loader, 30):
            optimizer.zero_grad()
            cnn.loss(model, batch).backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        batches = [cnn.predict(model, b) for b in DataLoader(splits["test"], 33)]  # type: ignore[arg-type]
    predictions = {k: torch.cat([b[k] for b in batches]).numpy() for k in batches[0]}
    rivals = cnn.rivals(splits)
    assert all(rival.keys() == predictions.keys() for rival in rivals.values())
    assert all(np.array_equal(r["observed"], predictions["observed"]) for r in rivals.values())
    found = compare(predictions, rivals, cnn.metrics, cnn.groups, num_resamples=100)
    assert found["num_groups"] == 6
    for metric, sign in (("relative_rmse", -1), ("correlation", 1)):
        gap = found["metrics"][metric]["rivals"]["linear in each wave"]
        assert gap["excludes_zero"] and sign * gap["difference"] > 0
    (figure,) = cnn.figures(predictions, rivals).values()
    assert len(figure.data) == 4


@pytest.mark.parametrize(
    ("words", "where"),
    [({"network": "vgg"}, "cnn.network"), ({"num_channels": 6}, "cnn.num_channels")],
)
def test_what_is_no_network_is_refused(words: dict[str, str | int], where: str) -> None:
    with pytest.raises(SpecError) as refused:
        cnn.model(**words)  # type: ignore[arg-type]
    assert refused.value.where == where


@pytest.mark.parametrize("network", ["resnet", "unet"])
def test_two_ranks_give_the_serial_numbers(bench: Bench, network: str) -> None:
    """In float64; 66 samples in batches of 21, so that the last step is uneven."""
    words = {"network": network, "num_channels": 4, "num_blocks": 2, "num_trajectories": 8}
    words |= {"epochs": 1, "global_batch_size": 21}
    serial = bench.train(cnn.__file__, "precision=float64", **words)
    for layout in ("data=2", "sharded=2,micro_batch_size=4"):
        ours = bench.train(cnn.__file__, f"{layout},precision=float64", **words)
        assert largest_relative(ours.losses, serial.losses) <= 1e-10
        assert distance(ours.parameters(), serial.parameters()) <= 1e-10
        assert ours.evaluations[-1]["metrics"] == pytest.approx(serial.evaluations[-1]["metrics"])
