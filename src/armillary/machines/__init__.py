"""Machines: one TOML file = one machine, each number with its source."""

from armillary.machines.catalogue import find_device, for_run, load, names, template
from armillary.machines.part import resized, with_num_devices

__all__ = [
    "find_device",
    "for_run",
    "load",
    "names",
    "resized",
    "template",
    "with_num_devices",
]
