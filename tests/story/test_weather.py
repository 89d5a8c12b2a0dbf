"""The weather recipe: real data, honest splits, sensible rivals, a model that can learn it."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from armillary.audit import compare
from armillary.recipes import weather
from armillary.spec import SpecError


@pytest.fixture(scope="module")
def splits() -> dict[str, weather.Windows]:
    return weather.data()


def test_the_file_is_short_enough_to_copy() -> None:
    assert len(Path(weather.__file__).read_text().splitlines()) < 200


def test_the_data_are_decades_of_real_days(splits: dict[str, weather.Windows]) -> None:
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 28435,
        "validation": 4381,
        "test": 4170,
    }
    observed_c = torch.cat([split.after["observed_c"] for split in splits.values()]).numpy()
    assert -30 < observed_c.min() < -10 and 40 < observed_c.max() < 50


def test_the_splits_follow_each_other_in_time(splits: dict[str, weather.Windows]) -> None:
    for place in range(len(weather.PLACES)):
        dates = [
            splits[name].after["date"][splits[name].after["place"] == place].numpy()
            for name in ("train", "validation", "test")
        ]
        assert dates[0].max() < dates[1].min() and dates[1].max() < dates[2].min()
        assert all((np.diff(part) == 1).all() for part in dates)


def test_a_window_ends_on_the_day_before_its_forecast(splits: dict[str, weather.Windows]) -> None:
    test = splits["test"]
    today, tomorrow = test[500], test[501]
    assert today["days"].shape == (weather.NUM_DAYS, weather.NUM_WEATHER + 2)
    assert torch.equal(tomorrow["days"][:-1], today["days"][1:])
    assert tomorrow["days"][-1, 0] == today["anomaly"]
    assert tomorrow["persistence_c"] == today["observed_c"]
    expected_c = today["climatology_c"] + today["spread_c"] * today["anomaly"]
    torch.testing.assert_close(today["observed_c"], expected_c, atol=1e-4, rtol=0)


def test_scales_come_from_the_training_years_alone(splits: dict[str, weather.Windows]) -> None:
    for place in range(len(weather.PLACES)):
        train = splits["train"]
        anomaly = train.after["anomaly"][train.after["place"] == place]
        assert abs(anomaly.mean()) < 0.01 and abs(anomaly.std() - 1) < 0.01


def test_the_fingerprint_names_the_content(splits: dict[str, weather.Windows]) -> None:
    assert len({split.fingerprint for split in splits.values()}) == 3
    assert weather.data()["test"].fingerprint == splits["test"].fingerprint
    assert weather.data(test_years=2)["test"].fingerprint != splits["test"].fingerprint


def test_rivals_come_in_the_order_that_meteorology_knows(
    splits: dict[str, weather.Windows],
) -> None:
    found = {name: weather.metrics(rival) for name, rival in weather.rivals(splits).items()}
    assert found["linear regression"]["mae_c"] == pytest.approx(2.336, abs=0.01)
    assert found["persistence"]["mae_c"] == pytest.approx(2.563, abs=0.01)
    assert found["climatology"]["mae_c"] == pytest.approx(3.273, abs=0.01)


def test_a_short_training_beats_climatology_and_fills_the_figures(
    splits: dict[str, weather.Windows],
) -> None:
    torch.manual_seed(0)
    model = weather.model()
    optimizer = weather.optimizer(model.parameters())
    scheduler = weather.scheduler(optimizer, 100)
    for batch in islice(DataLoader(splits["train"], 256, shuffle=True), 100):
        optimizer.zero_grad()
        weather.loss(model, batch).backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        batches = [weather.predict(model, b) for b in DataLoader(splits["test"], 1024)]
    predictions = {k: torch.cat([b[k] for b in batches]).numpy() for k in batches[0]}
    rivals = weather.rivals(splits)
    assert all(rival.keys() == predictions.keys() for rival in rivals.values())
    for key in weather.KNOWN:
        assert all(np.array_equal(r[key], predictions[key]) for r in rivals.values())
    found = compare(predictions, rivals, weather.metrics, weather.groups, num_resamples=200)
    assert 130 < found["num_groups"] < 145
    gap = found["metrics"]["mae_c"]["rivals"]["climatology"]
    assert gap["excludes_zero"] and gap["difference"] < 0
    figures = weather.figures(predictions, rivals)
    assert len(figures) == 3 and all(len(figure.data) >= 3 for figure in figures.values())


def test_without_its_package_the_recipe_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weather, "find_spec", lambda name: None)
    assert importlib.util.find_spec("aquacrop") is not None
    with pytest.raises(SpecError, match=r"armillary\[weather\]"):
        weather.data()
