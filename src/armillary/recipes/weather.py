"""Tomorrow's maximum temperature from the last two weeks: the recipe to copy.

A small recurrent network reads fourteen days of one place and says how far tomorrow's maximum
will lie from what the calendar expects. Its rivals are what anybody can do without a network:
today's maximum once more (persistence), the average of that day of the year (climatology), and a
linear regression on the last five days. All are fitted on the training years alone.

Data: daily minimum and maximum temperature, precipitation and reference evapotranspiration,
without a gap, of Brussels 1976-2005, Champion (Nebraska) 1982-2018, Hyderabad 2000-2010 and
Tunis 1979-2002: climate files inside the PyPI package `aquacrop` (AquaCrop-OSPy, whose licence
file is Apache-2.0), so nothing is fetched at run time. The package names no stations. The model
they serve: Foster et al. 2017, "AquaCrop-OS", Agricultural Water Management 181, 18-22.

Split by time, place by place: the last three years test, the three before validate, the rest
trains. Neighbouring days resemble each other, so intervals come from resampling whole months.
"""

import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from armillary.spec import SpecError

PLACES = ("brussels", "champion", "hyderabad", "tunis")
NUM_DAYS = 14  # shapes: B samples, D days, F features, H hidden units; T days of a place
NUM_WEATHER = 4  # maximum, minimum, rain, evapotranspiration; then sine and cosine of the year
KNOWN = ("observed_c", "date", "place")
Columns = dict[str, np.ndarray]
settings = {"epochs": 10, "global_batch_size": 256, "clip_norm": 1.0}
monitor = "min:mae_c"


class Forecaster(nn.Module):
    """Anomaly of tomorrow's maximum [B], in spreads of its place."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.place = nn.Embedding(len(PLACES), 4)
        self.recurrent = nn.GRU(NUM_WEATHER + 2 + 4, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, days_BDF: torch.Tensor, place_B: torch.Tensor) -> torch.Tensor:
        place_BDF = self.place(place_B)[:, None].expand(-1, days_BDF.shape[1], -1)
        hidden_BDH, _ = self.recurrent(torch.cat([days_BDF, place_BDF], dim=-1))
        return self.head(hidden_BDH[:, -1]).squeeze(-1)


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Fourteen days and what is known of the day after, for each day in `last`."""

    def __init__(self, days: np.ndarray, after: Columns, last: np.ndarray) -> None:
        self.days, self.last = torch.from_numpy(days), last
        self.after = {name: torch.from_numpy(column[last]) for name, column in after.items()}
        content = b"".join(array.tobytes() for array in (days, last, *after.values()))
        self.fingerprint = hashlib.sha256(content).hexdigest()  # a resumed run compares it

    def __len__(self) -> int:
        return len(self.last)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        days = self.days[self.last[i] + 1 - NUM_DAYS : self.last[i] + 1]
        return {"days": days, **{name: column[i] for name, column in self.after.items()}}


def model(hidden_size: int = 48) -> nn.Module:
    return Forecaster(hidden_size)


def data(test_years: int = 3) -> dict[str, Windows]:
    parts = [read_place(place, test_years) for place in range(len(PLACES))]
    days = np.concatenate([days for days, _, _ in parts])
    after = {name: np.concatenate([part[1][name] for part in parts]) for name in parts[0][1]}
    split = np.concatenate([split for _, _, split in parts])
    names = ("train", "validation", "test")
    return {name: Windows(days, after, np.flatnonzero(split == i)) for i, name in enumerate(names)}


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (model(batch["days"], batch["place"]) - batch["anomaly"]).abs().mean()


def optimizer(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01)


def scheduler(optimizer: torch.optim.Optimizer, num_steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, 0.01, num_steps, pct_start=0.1 if num_steps != 10 else 0.2)


def predict(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    anomaly = model(batch["days"], batch["place"])
    forecast_c = batch["climatology_c"] + batch["spread_c"] * anomaly
    return {"forecast_c": forecast_c, **{name: batch[name] for name in KNOWN}}


def metrics(predictions: Columns) -> dict[str, float]:
    error_c = predictions["forecast_c"] - predictions["observed_c"]
    return {
        "mae_c": float(np.abs(error_c).mean()),
        "rmse_c": float(np.sqrt((error_c**2).mean())),
        "share_within_2c": float((np.abs(error_c) <= 2).mean()),
    }


def groups(predictions: Columns) -> np.ndarray:
    month = predictions["date"].astype("M8[D]").astype("M8[M]").astype(int)
    return predictions["place"] * 10_000 + month


def rivals(data: dict[str, Windows]) -> dict[str, Columns]:
    test = {name: column.numpy() for name, column in data["test"].after.items()}
    anomaly = regress(data["train"], data["test"])
    forecasts_c = {
        "persistence": test["persistence_c"],
        "climatology": test["climatology_c"],
        "linear regression": test["climatology_c"] + test["spread_c"] * anomaly,
    }
    known = {name: test[name] for name in KNOWN}
    return {name: {"forecast_c": value, **known} for name, value in forecasts_c.items()}


def figures(predictions: Columns, rivals: dict[str, Columns]) -> dict[str, go.Figure]:
    every = {"model": predictions, **rivals}
    brussels = np.flatnonzero(predictions["place"] == 0)[-365:]
    date = predictions["date"][brussels].astype("M8[D]")
    year = go.Figure(layout={"yaxis_title": "°C"})
    for name, values_c, mode in (
        ("forecast of the day before", predictions["forecast_c"], "lines"),
        ("observed", predictions["observed_c"], "markers"),
        ("climatology", rivals["climatology"]["forecast_c"], "lines"),
    ):
        year.add_scatter(x=date, y=values_c[brussels], name=name, mode=mode, marker_size=4)

    errors = go.Figure(layout={"xaxis_title": "error, °C", "yaxis_title": "share of days below, %"})
    by_place = go.Figure(layout={"yaxis_title": "mean absolute error, °C", "barmode": "group"})
    for name, one in every.items():
        error_c = np.abs(one["forecast_c"] - one["observed_c"])
        errors.add_scatter(x=np.percentile(error_c, range(99)), y=np.arange(99), name=name)
        mae_c = [error_c[one["place"] == i].mean() for i in range(len(PLACES))]
        by_place.add_bar(x=PLACES, y=mae_c, name=name)
    return {"Brussels, the last year": year, "Sizes of errors": errors, "By place": by_place}


def read_place(place: int, test_years: int) -> tuple[np.ndarray, Columns, np.ndarray]:
    """Days [T, F] of one place, columns [T] about the day after each, and its split [T]."""
    package = find_spec("aquacrop")
    if package is None or package.submodule_search_locations is None:
        found, rule = "no package aquacrop", "the weather comes inside that package"
        raise SpecError("weather.data", found, rule, "pip install 'armillary[weather]'")
    file = Path(package.submodule_search_locations[0], "data", f"{PLACES[place]}_climate.txt")
    day, month, year, low_c, high_c, rain_mm, evaporation_mm = np.loadtxt(file, skiprows=1).T
    months = (year * 12 + month - 1 - 1970 * 12).astype("M8[M]")
    dates = months.astype("M8[D]") + (day - 1).astype(int)
    part = np.digitize(year - year[-1], [1 - 2 * test_years, 1 - test_years])
    past = part == 0

    angle = 2 * np.pi * (dates - dates.astype("M8[Y]")).astype(float) / 365.25
    waves = [wave(k * angle) for k in (1, 2, 3) for wave in (np.sin, np.cos)]
    calendar = np.stack([np.ones_like(angle), *waves], axis=1)
    weather = np.stack([high_c, low_c, np.sqrt(rain_mm), evaporation_mm], axis=1)
    mean = calendar @ np.linalg.lstsq(calendar[past], weather[past])[0]
    spread = (weather - mean)[past].std(axis=0)
    anomaly = (weather - mean) / spread

    next_day = np.append(np.arange(1, len(dates)), 0)  # the last day has none, and is left out
    after = {
        "anomaly": anomaly[next_day, 0],
        "observed_c": high_c[next_day],
        "climatology_c": mean[next_day, 0],
        "persistence_c": high_c,
        "spread_c": np.full(len(dates), spread[0]),
    }
    after = {name: column.astype(np.float32) for name, column in after.items()}
    after |= {"date": dates[next_day].astype(int), "place": np.full(len(dates), place)}
    split = part[next_day]  # a window belongs to the year of its forecast
    split[: NUM_DAYS - 1], split[-1] = -1, -1
    return np.concatenate([anomaly, calendar[:, 1:3]], 1).astype(np.float32), after, split


def regress(train: Windows, test: Windows) -> np.ndarray:
    """Anomaly of the day after each test window, linear in the weather of its last five days."""

    def inputs(windows: Windows) -> np.ndarray:
        recent = windows.days.numpy()[windows.last[:, None] + np.arange(-4, 1), :NUM_WEATHER]
        return np.c_[recent.reshape(len(windows), -1), np.ones(len(windows))]

    found, train_x, test_x = np.zeros(len(test), np.float32), inputs(train), inputs(test)
    for place in range(len(PLACES)):
        mine, there = (w.after["place"].numpy() == place for w in (train, test))
        weights = np.linalg.lstsq(train_x[mine], train.after["anomaly"].numpy()[mine])[0]
        found[there] = test_x[there] @ weights
    return found
