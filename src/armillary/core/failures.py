"""What failures and slow ranks take from a run: when to save, how much time is left for steps."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


def between_failures_s(device_hours_between: Any, num_devices: Any) -> Column:
    """Seconds between two interruptions of a job; infinite where nothing is known of them.

    Ranks fail independently, so a job of n is interrupted n times as often as one rank.
    """
    hours = np.asarray(device_hours_between, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.where(hours > 0, 3600.0 * hours / np.asarray(num_devices, np.float64), np.inf)


def young_interval_s(checkpoint_s: Any, between_s: Any) -> Column:
    """Seconds of work between two checkpoints that lose the least time, to first order.

    Source: Young 1974, "A First Order Approximation to the Optimum Checkpoint Interval",
    CACM 17(9): sqrt(2 delta M).
    """
    return np.sqrt(2.0 * np.asarray(checkpoint_s, np.float64) * np.asarray(between_s, np.float64))


def daly_interval_s(checkpoint_s: Any, between_s: Any) -> Column:
    """Seconds of work between two checkpoints that lose the least time.

    Where saving takes longer than twice the time between failures there is no good interval, and
    it is the time between failures. Infinite where nothing fails.

    Source: Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart
    dumps", Future Generation Computer Systems 22, equation 37.
    """
    saves, between = _pair(checkpoint_s, between_s)
    with np.errstate(invalid="ignore", over="ignore"):
        ratio = np.where(np.isfinite(between), saves / (2.0 * between), 0.0)
        young = np.sqrt(2.0 * saves * between)
        long = young * (1.0 + np.sqrt(ratio) / 3.0 + ratio / 9.0) - saves
    found = np.where(saves < 2.0 * between, long, between)
    return np.where(np.isfinite(between), found, np.inf)


def goodput(interval_s: Any, checkpoint_s: Any, restart_s: Any, between_s: Any) -> Column:
    """The share of time that goes into steps that count, between 0 and 1.

    `interval_s` is the work between two checkpoints, `restart_s` the time from a failure to the
    next step. Failures are a Poisson process. An interval of 0 stands for as often as saving costs
    nothing.

    Source: Daly 2006: with delta to save and R to restart, work of T takes
    M e^(R/M) (e^((tau + delta)/M) - 1) T / tau.
    """
    work, saves = _pair(interval_s, checkpoint_s)
    restart, between = _pair(restart_s, between_s)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = work / between * np.exp(-restart / between) / np.expm1((work + saves) / between)
        share = np.where((work == 0) & (saves == 0), np.exp(-restart / between), share)
        alone = np.where(np.isfinite(work), work / (work + saves), 1.0)
    share = np.where(np.isfinite(between), share, np.where(work + saves == 0, 1.0, alone))
    return np.clip(share, 0.0, 1.0)


def slowest_of(num_ranks: Any, relative_spread: Any) -> Column:
    """How much longer the slowest of `num_ranks` takes than one does on average: a factor >= 1.

    Source: the expected largest of n normal numbers is at most sigma sqrt(2 ln n) above the mean
    (Boucheron, Lugosi and Massart 2013, "Concentration Inequalities", section 2.5).
    """
    count = np.maximum(np.asarray(num_ranks, np.float64), 1.0)
    return 1.0 + np.asarray(relative_spread, np.float64) * np.sqrt(2.0 * np.log(count))


def _pair(first: Any, second: Any) -> tuple[Column, Column]:
    pair = np.broadcast_arrays(np.asarray(first, np.float64), np.asarray(second, np.float64))
    return pair[0], pair[1]
