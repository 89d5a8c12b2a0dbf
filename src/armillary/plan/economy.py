"""What a step costs on a machine: time with failures in it, device hours, dollars, energy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.core import cost, failures
from armillary.plan.software import Software
from armillary.spec import Machine, ModelGraph, Survival

Column = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Economy:
    """The prices and failures of a machine, for a model whose checkpoint has so many bytes.

    Unknown numbers are 0 here as in the machine: nothing fails, saving takes no time, use costs
    nothing. `Plan.bounds` names them.
    """

    machine: Machine
    checkpoint_bytes: float

    @classmethod
    def of(
        cls, graph: ModelGraph, machine: Machine, software: Software, precision: str
    ) -> "Economy":
        """That of training `graph` on `machine`, saving parameters and optimiser states."""
        each = software.of(software.parameter_bytes, precision)
        each += software.of(software.optimizer_bytes, precision)
        return cls(machine=machine, checkpoint_bytes=graph.num_parameters * each)

    @property
    def has_price(self) -> bool:
        """Whether the machine has a price, of a device's hour or of energy."""
        return self.machine.price.usd_per_device_hour > 0 or self.machine.price.usd_per_kwh > 0

    @property
    def has_power(self) -> bool:
        """Whether it is known what a device draws."""
        return self.machine.device.power_w > 0

    def transfer_s(self, num_devices: Any, bytes_per_s: float) -> Column:
        """Seconds to bring a checkpoint to the store or back, all nodes at it; 0 if unknown."""
        nodes = np.maximum(np.asarray(num_devices, np.float64) / self.machine.ranks_per_node, 1.0)
        if bytes_per_s <= 0:
            return np.zeros_like(nodes)
        node_bytes_per_s = self.machine.nics_per_node * self.machine.nic_bytes_per_s
        rate = np.minimum(bytes_per_s, nodes * node_bytes_per_s if node_bytes_per_s else np.inf)
        return np.asarray(self.checkpoint_bytes / rate)

    def checkpoint_s(self, num_devices: Any) -> Column:
        """Seconds to save once."""
        return self.transfer_s(num_devices, self.machine.storage.write_bytes_per_s)

    def restart_s(self, num_devices: Any) -> Column:
        """Seconds from a failure to the next step, reading the checkpoint included."""
        read_s = self.transfer_s(num_devices, self.machine.storage.read_bytes_per_s)
        return self.machine.failures.restart_s + read_s

    def between_failures_s(self, num_devices: Any) -> Column:
        """Seconds between failures of a job of so many devices; infinite if unknown."""
        return failures.between_failures_s(self.machine.failures.device_hours_between, num_devices)

    def interval_s(self, num_devices: Any) -> Column:
        """Seconds of work between two checkpoints; infinite where nothing fails."""
        saves_s, between_s = self.checkpoint_s(num_devices), self.between_failures_s(num_devices)
        return failures.daly_interval_s(saves_s, between_s)

    def goodput(self, num_devices: Any) -> Column:
        """The share of time that goes into steps that count."""
        devices, index = np.unique(np.asarray(num_devices), return_inverse=True)
        found = failures.goodput(
            self.interval_s(devices),
            self.checkpoint_s(devices),
            self.restart_s(devices),
            self.between_failures_s(devices),
        )
        return np.asarray(found[index].reshape(np.shape(num_devices)))

    def device_hours(self, num_devices: Any, step_s: Any) -> Column:
        """Device hours of a step, failures included."""
        return cost.device_hours(num_devices, step_s, self.goodput(num_devices))

    def energy_j(self, num_devices: Any, step_s: Any, busy_s: Any) -> Column:
        """Joules of a step at the meter, failures included; 0 where the power is not known."""
        machine = self.machine
        if not self.has_power:
            return np.zeros(np.broadcast_shapes(np.shape(num_devices), np.shape(step_s)))
        ranks_w = machine.ranks_per_node * machine.device.power_w
        other_w = max(machine.node_power_w - ranks_w, 0.0) / machine.ranks_per_node
        joules = cost.energy_j(
            num_devices,
            step_s,
            busy_s,
            power_w=machine.device.power_w,
            idle_power_w=machine.device.idle_power_w,
            other_w=other_w,
            pue=machine.pue,
        )
        return np.asarray(joules / self.goodput(num_devices))

    def usd(self, num_devices: Any, step_s: Any, busy_s: Any) -> Column:
        """Dollars of a step, failures included; 0 where the machine has no price."""
        price = self.machine.price
        return np.asarray(
            cost.usd(
                self.device_hours(num_devices, step_s),
                price.usd_per_device_hour,
                self.energy_j(num_devices, step_s, busy_s),
                price.usd_per_kwh,
            )
        )

    def survival(self, num_devices: int, step_s: float) -> Survival:
        """When a job of so many devices saves, and what share of its time is left for steps."""
        between_s, interval_s = self.between_failures_s(num_devices), self.interval_s(num_devices)
        fails = bool(np.isfinite(between_s))
        path = "failures.device_hours_between"
        source = self.machine.sources.get(path) or self.machine.unknown.get(path, "")
        return Survival(
            checkpoint_bytes=self.checkpoint_bytes,
            predicted_checkpoint_s=float(self.checkpoint_s(num_devices)),
            between_failures_s=float(between_s) if fails else 0.0,
            restart_s=float(self.restart_s(num_devices)),
            interval_s=float(interval_s) if fails else 0.0,
            interval_steps=max(1, round(float(interval_s) / step_s)) if fails else 0,
            predicted_goodput=float(self.goodput(np.array([num_devices]))[0]),
            source=f"Daly 2006 (core/failures.py); {source}" if fails else "",
        )
