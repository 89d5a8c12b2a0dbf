"""What steps cost: device hours, energy, money."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]

J_PER_KWH = 3.6e6


def energy_j(
    num_devices: Any,
    step_s: Any,
    busy_s: Any,
    *,
    power_w: float,
    idle_power_w: float,
    other_w: float = 0.0,
    pue: float = 1.0,
) -> Column:
    """Joules of one step at the meter: devices that compute for `busy_s` of its `step_s`, the rest.

    A device draws `idle_power_w` all the time and the rest of `power_w` while it computes;
    `other_w` is what the node draws beside, by device. `pue` is the facility's total over what its
    computers draw.

    Source: power linear in utilisation: Fan, Weber and Barroso 2007, "Power Provisioning for a
    Warehouse-sized Computer", ISCA; PUE after ISO/IEC 30134-2.
    """
    steps, busy = np.asarray(step_s, np.float64), np.asarray(busy_s, np.float64)
    dynamic_w = max(power_w - idle_power_w, 0.0)
    each = (idle_power_w + other_w) * steps + dynamic_w * np.minimum(busy, steps)
    return np.asarray(max(pue, 1.0) * np.asarray(num_devices, np.float64) * each)


def device_hours(num_devices: Any, step_s: Any, goodput: Any = 1.0) -> Column:
    """Hours of devices that a step takes, those that failures waste included."""
    devices, steps = np.asarray(num_devices, np.float64), np.asarray(step_s, np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(devices * steps / 3600.0 / np.asarray(goodput, np.float64))


def usd(hours: Any, usd_per_device_hour: float, joules: Any = 0.0, usd_per_kwh: float = 0.0) -> Any:
    """Dollars of device hours at their price; where they have none, of the energy at its own."""
    if usd_per_device_hour > 0:
        return np.asarray(hours, np.float64) * usd_per_device_hour
    return np.asarray(joules, np.float64) / J_PER_KWH * usd_per_kwh
