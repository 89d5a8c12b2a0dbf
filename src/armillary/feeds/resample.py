"""Signals of different clocks on one time base, without a look into the future.

A row at time t holds each signal's last known value at or before t, for at most `hold_s`; nothing
is interpolated, because a straight line to the next sample already knows it.

Letters of shapes: N samples of a signal, T rows, S signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from armillary.feeds.shots import STEP_S
from armillary.spec import SpecError

GUESS_HOLD_S = 0.010
TIME_ROUNDING_S = 1e-6
"""FAIR-MAST stores EFIT times as float32, 1.2e-7 s apart at 1 s (IEEE 754): 0.05 may read
0.05000000075. A sample this little after its row still counts as of that row."""

_TO_SI = {"kA": ("A", 1e3), "MA": ("A", 1e6), "kW": ("W", 1e3), "MW": ("W", 1e6), "kJ": ("J", 1e3)}


class Signal(NamedTuple):
    """One signal of a shot: `time_s` (N,), `values` (N, ...) as stored, and their units."""

    time_s: NDArray[np.float64]
    values: NDArray[Any]
    units: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Signals of a shot on one time base: `values` (T, S) float32 in SI units, NaN where unknown.

    `mask` (T, S) is True where a value is known; `missing` names the signals the shot lacks.
    """

    shot_id: int
    names: tuple[str, ...]
    units: tuple[str, ...]
    time_s: NDArray[np.float64]
    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    missing: tuple[str, ...]


def hold_last(
    signal_time_s: NDArray[np.floating[Any]],
    signal_values: NDArray[Any],
    at_s: NDArray[np.floating[Any]],
    hold_s: float = GUESS_HOLD_S,
) -> NDArray[np.float64]:
    """The last finite value at or before each time, NaN where none is younger than `hold_s`.

    Shapes: signal_time_s (N,), signal_values (N,), at_s (T,) -> (T,).

    Example:
        >>> hold_last(np.array([0.0, 1.0]), np.array([5.0, 7.0]), np.array([-1.0, 0.9, 1.0]), 2.0)
        array([nan,  5.,  7.])
    """
    known = np.isfinite(signal_time_s) & np.isfinite(signal_values)
    time_N = np.asarray(signal_time_s, np.float64)[known]
    values_N = np.asarray(signal_values, np.float64)[known]
    held_T = np.full(len(at_s), np.nan)
    if len(time_N) == 0:
        return held_T
    order = np.argsort(time_N, kind="stable")
    time_N, values_N = time_N[order], values_N[order]
    last_T = np.searchsorted(time_N, at_s + TIME_ROUNDING_S, side="right") - 1
    reached = last_T >= 0
    young = at_s - time_N[last_T] <= hold_s + TIME_ROUNDING_S
    held_T[reached & young] = values_N[last_T[reached & young]]
    return held_T


def resample(
    shot: Mapping[str, Signal],
    signals: Mapping[str, str | Sequence[str]] | Sequence[str],
    *,
    shot_id: int = 0,
    step_s: float = STEP_S,
    start_s: float | None = None,
    stop_s: float | None = None,
    hold_s: float = GUESS_HOLD_S,
) -> Samples:
    """A shot's signals in SI units on the multiples of `step_s` from `start_s` to `stop_s`.

    `signals` gives each a name and one path in the shot or several, the first present being taken;
    or is a list of paths. Without `start_s` or `stop_s` the rows span what the signals span.

    Shapes: signals must be (N,) in the shot; the result is (T, S).

    Raises:
        SpecError: a step or span that gives no rows, a signal of more dims, or none present.
    """
    if not (np.isfinite(step_s) and step_s > 0 and hold_s >= 0):
        raise SpecError(
            "resample.step_s",
            f"step {step_s} s, hold {hold_s} s",
            "a step is above 0 and a hold not below 0 (feeds/resample.py)",
            f"the step of MAST's equilibria is {STEP_S} s",
        )
    wanted = _paths(signals)
    found = {name: _first_present(shot, paths) for name, paths in wanted.items()}
    at_s = _rows(list(found.values()), step_s, start_s, stop_s)
    values = np.full((len(at_s), len(wanted)), np.nan, np.float32)
    units = []
    for column, signal in enumerate(found.values()):
        if signal is None:
            units.append("")
            continue
        unit, factor = _TO_SI.get(signal.units, (signal.units, 1.0))
        units.append(unit)
        values[:, column] = factor * hold_last(signal.time_s, signal.values, at_s, hold_s)
    return Samples(
        shot_id=shot_id,
        names=tuple(wanted),
        units=tuple(units),
        time_s=at_s,
        values=values,
        mask=np.isfinite(values),
        missing=tuple(name for name, signal in found.items() if signal is None),
    )


def _paths(
    signals: Mapping[str, str | Sequence[str]] | Sequence[str],
) -> dict[str, tuple[str, ...]]:
    if not isinstance(signals, Mapping):
        return {path: (path,) for path in signals}
    return {
        name: (paths,) if isinstance(paths, str) else tuple(paths)
        for name, paths in signals.items()
    }


def _first_present(shot: Mapping[str, Signal], paths: Sequence[str]) -> Signal | None:
    path = next((path for path in paths if path in shot), None)
    if path is None:
        return None
    signal = shot[path]
    if signal.values.ndim != 1:
        raise SpecError(
            f"resample.{path}",
            f"has shape {signal.values.shape}",
            "a column of the time base is one number a time (feeds/resample.py)",
            "pick a channel first, and pass it as a Signal of its own",
        )
    return signal


def _rows(
    found: Sequence[Signal | None], step_s: float, start_s: float | None, stop_s: float | None
) -> NDArray[np.float64]:
    spans = [signal.time_s[np.isfinite(signal.time_s)] for signal in found if signal is not None]
    spans = [span for span in spans if len(span)]
    if not spans:
        raise SpecError(
            "resample.signals",
            "the shot has none of them",
            "at least one of the signals must be present (feeds/resample.py)",
            "list(shot) names what is there",
        )
    begin = min(span.min() for span in spans) if start_s is None else start_s
    end = max(span.max() for span in spans) if stop_s is None else stop_s
    # times that are a multiple of the step but for rounding belong to it
    first = int(np.ceil((begin - TIME_ROUNDING_S) / step_s))
    last = int(np.floor((end + TIME_ROUNDING_S) / step_s))
    if last < first:
        raise SpecError(
            "resample.stop_s",
            f"no multiple of {step_s} s lies from {begin:g} s to {end:g} s",
            "the time base has at least one row (feeds/resample.py)",
            "widen the span or shorten the step",
        )
    return np.arange(first, last + 1, dtype=np.float64) * step_s
