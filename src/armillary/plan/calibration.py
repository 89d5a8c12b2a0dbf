"""Constants that were fitted on published runs, and the software of a plan with them applied."""

import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import ClassVar

from armillary.plan.software import Software
from armillary.spec import Document

FILE = "calibration.toml"
FACTORS = ("kernel_fraction", "attention_fraction")
"""Fields of `Software` that several constants multiply: of a device, and of a program on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(Document):
    """One number: a `field` of `Software`, of the programs and on the devices that it is for.

    `devices` are patterns of names; with none it is for all. `low` and `high` enclose the value
    with a chance of nine in ten; `num_rows` of the fitted runs depend on it, of `sources` in all.
    """

    what: ClassVar[str] = "constant"

    name: str
    field: str
    value: float
    low: float
    high: float
    software: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    num_rows: int = 0
    sources: tuple[str, ...] = ()

    def serves(self, software: str, device: str) -> bool:
        """Whether it is for this program on this device."""
        of_program = not self.software or software in self.software
        of_device = not self.devices or any(fnmatchcase(device, p) for p in self.devices)
        return of_program and of_device


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration(Document):
    """All fitted constants, with where they are from.

    `errors` are those that the fit left, by name, each a share.
    """

    what: ClassVar[str] = "calibration"

    source: str
    constants: tuple[Constant, ...] = ()
    errors: dict[str, float] | None = None

    def applied(self, software: Software, device: str) -> Software:
        """`software` as it runs on the device called `device`."""
        values: dict[str, float] = {}
        for constant in self.constants:
            if constant.serves(software.name, device):
                name = constant.field
                start = getattr(software, name) if name in FACTORS else None
                before = values.get(name, start)
                factor = before if name in FACTORS and before is not None else 1.0
                values[name] = factor * constant.value
        return replace(software, **values)  # type: ignore[arg-type]


@cache
def load() -> Calibration:
    """The calibration that the package has, of `plan/calibration.toml`."""
    text = files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    return Calibration.from_dict(tomllib.loads(text), f"plan/{FILE}")


def calibrated(software: Software, device: str) -> Software:
    """`software` as it runs on `device`, with the constants of the package."""
    return load().applied(software, device)
