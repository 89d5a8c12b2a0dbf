"""The machines we have, by name, by file, and by the names that published runs give them."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from armillary.machines.part import resized
from armillary.machines.reading import machine_at, with_likeness
from armillary.machines.sourced import DATA, read_toml
from armillary.spec import Machine, SpecError, likely, nearest


def names() -> tuple[str, ...]:
    """The names of the machines, in order of the alphabet: one file each in `data/`."""
    return tuple(sorted(path.stem for path in DATA.glob("*.toml")))


def load(machine: str | Path) -> Machine:
    """The machine of that name, or in the TOML file at that path.

    Raises: `SpecError` on a name we have not, and on a file that is not right.
    """
    text = str(machine)
    if text in names():
        return _stored(text)
    path = Path(text)
    if path.suffix == ".toml" or path.is_file():
        return machine_at(path)
    raise SpecError(
        "machine",
        f"{text!r}",
        "a machine is one of `armillary machines`, or the path of a TOML file",
        likely(text, names()) or "see `armillary machines` for their names",
    )


@cache
def _stored(name: str) -> Machine:
    return machine_at(DATA / f"{name}.toml")


def template() -> str:
    """A machine file to start from: the text of a small one, with every table explained."""
    return (DATA / "sources" / "template.toml").read_text(encoding="utf-8")


def find_device(gpu: str) -> Machine:
    """The usual machine of the device that published runs call `gpu`, such as "A100-SXM-80GB".

    Raises: `SpecError` on a device we have not, and on a name that several have.
    """
    return load(_device(gpu)[1])


def for_run(gpu: str, gpus_per_node: int, machine: str, num_devices: int) -> Machine:
    """`num_devices` ranks of the machine that a published run was made on.

    `gpu`, `gpus_per_node` and `machine` are as the run's table has them. The machine is the one
    whose `known_as` patterns fit and which has that device, else the device's usual one; its
    outermost level is made as wide as the run.

    Raises: `SpecError` on a device we have not, and on numbers below one.
    """
    device, usual = _device(gpu)
    if gpus_per_node < 1 or num_devices < 1:
        raise SpecError(
            "run",
            f"{num_devices} devices, {gpus_per_node} a node",
            "a run has at least one device on a node",
            "mend the row",
        )
    found = load(_named(machine, device) or usual)
    if num_devices <= gpus_per_node:
        return resized(found, 1, num_devices)
    return resized(found, -(-num_devices // gpus_per_node), gpus_per_node)


def _device(gpu: str) -> tuple[str, str]:
    """(device, its usual machine) of the one device that `gpu` can mean."""
    known = _devices()
    if gpu in known:
        return known[gpu]
    asked = _bare(gpu)
    alike = {
        found
        for name, found in known.items()
        if asked and (asked in _bare(name) or _bare(name) in asked)
    }
    if len(alike) != 1:
        raise SpecError(
            "gpu",
            f"{gpu!r}" + (f", which {len(alike)} devices could be called" if alike else ""),
            "the device of a published run is one of data/devices, by one of its known_as names",
            nearest(gpu, known),
        )
    return alike.pop()


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]|gb", "", name.lower())


def _named(machine: str, device: str) -> str:
    """The first of our machines with that device that a published name fits, or ""."""
    for name, (own_device, patterns) in _patterns().items():
        if own_device == device and any(fnmatchcase(machine, pattern) for pattern in patterns):
            return name
    return ""


@cache
def _devices() -> Mapping[str, tuple[str, str]]:
    """(device, its usual machine) by every name that published runs give it."""
    found = {}
    for path in sorted((DATA / "devices").glob("*.toml")):
        values = read_toml(path)
        for name in (path.stem, *_words(values.get("known_as"))):
            if "usual_machine" in values:
                found[name] = (path.stem, str(values["usual_machine"]))
    return found


@cache
def _patterns() -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """(device, patterns of published names) by machine."""
    found = {}
    for name in names():
        values = read_toml(DATA / f"{name}.toml")
        device = with_likeness(values, name).get("device", "")
        found[name] = (str(device), tuple(_words(values.get("known_as"))))
    return found


def _words(value: Any) -> Iterable[str]:
    return [str(one) for one in value] if isinstance(value, list) else []
