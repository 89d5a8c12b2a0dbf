"""Robust least squares of few constants with expected values, and leaving sources out."""

# Shapes: N rows, C constants; a place q is where a constant lies in spreads from its start
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.problem import Problem

Array = NDArray[np.float64]
KNEE = 0.08
"""Relative error from which on a row counts by its size, no longer by its square."""
EXPECTED = 0.25
"""How much a constant's expected value weighs: as a source that is off by a fourth of `KNEE`."""
WEIGHTS = {"vtrain": 3.0, "korthikanti": 1.6}
"""Sources that weigh more than one: 720 runs, and runs measured with care at known settings."""
FEW_ROWS, OF_FEW = 3, 0.6
"""A source of so few rows weighs less than one."""
LONGEST = 1.5
"""The longest step of a constant at once, in spreads."""


@dataclass(frozen=True)
class Fitted:
    """Where the constants came to lie, with the errors and slopes of the rows there."""

    place: Array
    errors: Array
    slopes: Array


def values_at(problem: Problem, place: Array) -> Array:
    """The constants at a place."""
    start = np.array([c.start for c in problem.constants])
    spread = np.array([c.spread for c in problem.constants])
    return np.asarray(start * np.exp(place * spread))


def weights(problem: Problem) -> Array:
    """Of rows: every source weighs the same, but for `WEIGHTS` and sources of few rows."""
    sources = problem.sources
    found = np.zeros(len(sources))
    for source in set(sources.tolist()):
        rows = sources == source
        few = OF_FEW if rows.sum() <= FEW_ROWS else 1.0
        found[rows] = few * WEIGHTS.get(source, 1.0) / np.sqrt(rows.sum())
    return found


def fit(problem: Problem, place: Array, num_steps: int) -> Fitted:
    """The best constants, from `place` on by damped Gauss-Newton steps."""
    weight = weights(problem)
    damping = 0.05
    errors, slopes = problem.slopes(values_at(problem, place))
    cost = _cost(errors, weight, place)
    for _ in range(num_steps):
        matrix, gradient = _normal(errors, slopes, weight, place)
        for _ in range(5):
            damped = matrix + damping * np.diag(np.diag(matrix))
            step = np.clip(-np.linalg.solve(damped, gradient), -LONGEST, LONGEST)
            tried = problem.slopes(values_at(problem, place + step))
            new = _cost(tried[0], weight, place + step)
            if new < cost:
                break
            damping *= 5.0
        else:
            break
        damping = max(damping / 4.0, 1e-4)
        is_done = cost - new < 1e-3 * cost
        place, cost, (errors, slopes) = place + step, new, tried
        print(f"  cost {cost:.4f}", flush=True)
        if is_done:
            break
    return Fitted(place, errors, slopes)


def _cost(errors: Array, weight: Array, place: Array) -> float:
    robust = 2.0 * (np.sqrt(1.0 + (errors / KNEE) ** 2) - 1.0) * KNEE**2
    return float(np.sum(weight**2 * robust) + (EXPECTED * KNEE) ** 2 * np.sum(place**2))


def _normal(errors: Array, slopes: Array, weight: Array, place: Array) -> tuple[Array, Array]:
    robust = weight**2 / np.sqrt(1.0 + (errors / KNEE) ** 2)
    expected = (EXPECTED * KNEE) ** 2
    matrix = (slopes * robust[:, None]).T @ slopes + expected * np.eye(len(place))
    return matrix, (slopes * robust[:, None]).T @ errors + expected * place


def without(problem: Problem, fitted: Fitted, source: str) -> Array:
    """Where the constants would lie without a source, by the slopes at the fit."""
    weight = weights(problem) * (problem.sources != source)
    place = fitted.place.copy()
    for _ in range(12):
        errors = fitted.errors + fitted.slopes @ (place - fitted.place)
        matrix, gradient = _normal(errors, fitted.slopes, weight, place)
        place = place - 0.8 * np.linalg.solve(matrix, gradient)
    return place


def left_out(problem: Problem, fitted: Fitted) -> tuple[Array, dict[str, Array]]:
    """Ours of every row with the constants of all other sources, and those places by source."""
    found = np.full(len(problem.subjects), np.nan)
    places = {}
    for source in sorted(set(problem.sources.tolist())):
        places[source] = without(problem, fitted, source)
        values = values_at(problem, places[source])
        for row in np.flatnonzero(problem.sources == source):
            found[row] = problem.seconds(int(row), [values])[0]
    return found, places


def intervals(problem: Problem, fitted: Fitted, places: dict[str, Array]) -> tuple[Array, Array]:
    """Bounds of nine in ten of every constant: the spread of the fits that leave a source out.

    The jackknife over sources says how much one source decides, the curvature of the fit how
    little the rows say; the wider of both counts.

    Source: Efron and Stein 1981, Annals of Statistics 9, 586 (jackknife).
    """
    all_places = np.stack(list(places.values()))
    number = len(all_places)
    jackknife = (number - 1) / number * np.sum((all_places - all_places.mean(0)) ** 2, axis=0)
    matrix, _ = _normal(fitted.errors, fitted.slopes, weights(problem), fitted.place)
    curvature = KNEE**2 * np.diag(np.linalg.inv(matrix))
    wide = 1.645 * np.sqrt(np.maximum(jackknife, curvature))
    return values_at(problem, fitted.place - wide), values_at(problem, fitted.place + wide)
