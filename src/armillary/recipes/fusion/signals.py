"""Shots of one machine, read and cleaned; a shot that cannot be used is named, never fatal.

The sixteen signals are those of `armillary.feeds.shots`. Cleaning is causal: what row t becomes
depends on rows up to t of the same shot alone.

Letters of shapes: T rows of a shot, 5 ms apart; V the sixteen variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.feeds.shots import VARIABLES, ShotTable, read_shots
from armillary.recipes.fusion.features import physics_features
from armillary.recipes.fusion.labels import Ending, ending

Array = NDArray[np.float64]

RECONSTRUCTED = VARIABLES[: VARIABLES.index("Ip")]
"""What the equilibrium reconstruction (EFIT) gives; it writes 0 where it did not converge."""
ZERO_IS_MISSING = ("ne_line", "greenwald_den", "p_rad")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One shot: signals (T, V) with NaN where missing, features (T, F), and how it ended.

    `ending` is None where the end was not looked for: a shot still running, or one to be scored.
    """

    shot_id: int
    signals_TV: Array
    features_TF: Array
    ending: Ending | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shots:
    """Usable shots of a table in order of number, why others were left out, the data's hash."""

    table: ShotTable
    shots: tuple[Shot, ...]
    skipped: tuple[tuple[int, str], ...]
    fingerprint: str


def clean(raw_TV: NDArray[np.floating]) -> Array:
    """Signals (T, V) with a positive plasma current and NaN for what was not measured.

    The current's sign is that of its sum up to the row. A reconstruction counts as absent where
    its q95 is 0; a density or radiated power of exactly 0 is a diagnostic that was off.
    """
    signals = np.array(raw_TV, np.float64)
    column = {name: i for i, name in enumerate(VARIABLES)}
    current = signals[:, column["Ip"]]
    sign = np.sign(np.nancumsum(current))
    signals[:, column["Ip"]] = current * np.where(sign == 0, 1, sign)
    absent = ~(signals[:, column["q95"]] != 0)
    for name in RECONSTRUCTED:
        signals[absent, column[name]] = np.nan
    for name in ZERO_IS_MISSING:
        signals[signals[:, column[name]] == 0, column[name]] = np.nan
    signals[~np.isfinite(signals)] = np.nan
    return signals


def read_machine(path: str | None, *, with_endings: bool = True) -> Shots:
    """The usable shots of a table, cleaned, with features and endings; without endings every shot.

    Raises: SpecError when the table itself cannot be read (`armillary.feeds.shots`).
    """
    return prepare(read_shots(path, keep_all=not with_endings), with_endings=with_endings)


def prepare(table: ShotTable, *, with_endings: bool = True) -> Shots:
    """The usable shots of a table in memory; each that is not usable with its reason."""
    kept, skipped = [], list(table.skipped)
    for shot_id, raw in zip(table.shot_ids, table.series, strict=True):
        signals = clean(raw)
        found = None
        if with_endings:
            try:
                found = ending(signals[:, VARIABLES.index("Ip")])
            except ValueError as reason:
                skipped.append((shot_id, str(reason)))
                continue
        features = physics_features(signals)
        kept.append(Shot(shot_id=shot_id, signals_TV=signals, features_TF=features, ending=found))
    kept.sort(key=lambda shot: shot.shot_id)
    return Shots(
        table=table, shots=tuple(kept), skipped=tuple(skipped), fingerprint=table.fingerprint
    )
