"""A machine from its tables: its device, what both reach, and the levels that follow from them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armillary.machines.sourced import DATA, Ledger, is_number, read_toml
from armillary.spec import Machine, SpecError, nearest

# What a plan cannot do without; a file that has none of these is refused by name.
NEEDED = ("num_nodes", "ranks_per_node", "device.memory_bytes", "device.memory_bytes_per_s")
# github.com/huggingface/text-generation-inference issue 2572: an idle H100 draws 114 of 700 W.
IDLE_SHARE = 114 / 700
# DGX A100, 6,500 W with 8 devices of 400 W; DGX H100, 10,200 W with 8 of 700 W, is 1.8.
NODE_OVER_DEVICES = 6500 / 3200
# Keys that help to find or to write a file, and are no part of the document.
NOT_OF_THE_DOCUMENT = ("like", "known_as", "usual_machine", "fit", "fit_collectives")


def machine_from(values: Mapping[str, Any], name: str, where: str) -> Machine:
    """The machine that the tables `values` of the file `where` describe.

    `like = "other"` starts from another machine's file. `device` is the name of a file in
    `data/devices`, or a table. What its owner measured of the device is taken from `[device]`,
    else from `data/fits`, else from the device's file; what none of them has is the stated
    default of `data/sources/efficiency.toml`.

    Raises: `SpecError` on a number without a source, a number missing that a plan needs, and
    levels that do not nest.
    """
    tables = _laid_over(read_toml(DATA / "sources" / "defaults.toml"), with_likeness(values, where))
    device_name, device = device_tables(tables.pop("device", None), where)
    tables["device"] = device
    tables["levels"] = _level_tables(tables, device_name, where)
    for key in NOT_OF_THE_DOCUMENT:
        tables.pop(key, None)
    ledger = Ledger(where)
    found = ledger.plain(tables)
    for path in NEEDED:
        _require(found, path, ledger)
    _drop_sources(found)
    _note_efficiency(found, ledger)
    _bound_power(found, ledger)
    found["device"]["name"] = device_name
    found["levels"] = _derived_levels(found, ledger)
    return Machine.from_dict(
        found | {"name": name, "sources": ledger.sources, "unknown": ledger.unknown}, where
    )


def with_likeness(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` laid over the machine that they are `like`, if any."""
    like = values.get("like")
    if like is None:
        return dict(values)
    path = DATA / f"{like}.toml"
    if not path.is_file():
        known = [one.stem for one in DATA.glob("*.toml")]
        raise SpecError(
            f"{where}.like", f"{like!r}", "a machine is like one of ours", nearest(str(like), known)
        )
    base = with_likeness(read_toml(path), path.name)
    return _laid_over(base, {key: value for key, value in values.items() if key != "like"})


def _laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`: tables are merged; numbers with a source, and lists, are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        under = merged.get(key)
        is_table = isinstance(value, Mapping) and isinstance(under, Mapping)
        if is_table and not {"value", "bound", "from"} & {*value, *under}:  # type: ignore[misc]
            merged[key] = _laid_over(under, value)  # type: ignore[arg-type]
        else:
            merged[key] = value
    return merged


def device_tables(device: Any, where: str) -> tuple[str, dict[str, Any]]:
    """(name, tables) of a device given by the name of its file, or as a table of one's own."""
    if isinstance(device, Mapping):
        own = dict(device)
        name = str(own.pop("name", "own"))
        like = own.pop("like", None)
        base = device_tables(like, where)[1] if like else {}
        tables = _laid_over(base, own)
    else:
        name = str(device)
        path = DATA / "devices" / f"{name}.toml"
        if not path.is_file():
            known = [one.stem for one in (DATA / "devices").glob("*.toml")]
            raise SpecError(
                f"{where}.device",
                f"{device!r}",
                "a device is a file of data/devices, or a table",
                nearest(name, known),
            )
        tables = _laid_over(read_toml(path), _fit(name))
        tables.pop("collectives", None)
    for key in NOT_OF_THE_DOCUMENT:
        tables.pop(key, None)
    default = read_toml(DATA / "sources" / "efficiency.toml")["efficiency"]
    tables["efficiency"] = default | dict(tables.get("efficiency", {}))
    tables["efficiencies"] = {
        dtype: tables["efficiency"] | dict(one)
        for dtype, one in dict(tables.get("efficiencies", {})).items()
    }
    return name, tables


def _fit(device: str) -> dict[str, Any]:
    """What was fitted to measurements of a device, or of the one that its file names as `fit`.

    `fit_collectives = false` says that the device has other links than the one it is like.
    """
    file = DATA / "devices" / f"{device}.toml"
    known = read_toml(file) if file.is_file() else {}
    path = DATA / "fits" / f"{known.get('fit', device)}.toml"
    fitted = read_toml(path) if path.is_file() else {}
    if not known.get("fit_collectives", True):
        fitted.pop("collectives", None)
    return fitted


def _level_tables(tables: Mapping[str, Any], device: str, where: str) -> list[dict[str, Any]]:
    """The levels, with the collectives that were measured on such devices and such a network."""
    levels = tables.get("levels", [])
    if not isinstance(levels, list) or not all(isinstance(one, Mapping) for one in levels):
        raise SpecError(
            f"{where}.levels",
            f"{levels!r}",
            "levels are tables, innermost first",
            "write each as [[levels]]",
        )
    fits = _fit(device).get("collectives", {})
    return [
        dict(one)
        | {"collectives": {**fits.get(one.get("network", ""), {}), **one.get("collectives", {})}}
        for one in levels
    ]


def _require(found: Mapping[str, Any], path: str, ledger: Ledger) -> None:
    """Raise `SpecError` if the value at `path` of `found` is missing, nothing or below nothing."""
    value: Any = found
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not value or (is_number(value) and value < 0):
        raise SpecError(
            f"{ledger.where}.{path}",
            ledger.unknown.get(path, "not given" if value is None else f"{value}"),
            "a plan cannot do without it",
            "give { value, source }, or { bound, from, because }; "
            "`armillary machines --template` shows both",
        )


def _drop_sources(found: dict[str, Any]) -> None:
    """Take out the sources of tables whose documents have no such field; the ledger has them."""
    for name in ("host", "storage", "failures", "price"):
        found.get(name, {}).pop("source", None)
    found["device"].pop("source", None)
    found["device"].get("peak_flops_per_s", {}).pop("source", None)
    for level in found["levels"]:
        level.get("shape", {}).pop("source", None)
    found.pop("source", None)


def _note_efficiency(found: Mapping[str, Any], ledger: Ledger) -> None:
    """One source for the numbers of each fit; say so where the default stands in place of one."""
    for path in list(ledger.sources):
        whole = re.match(r"device\.(efficiency|efficiencies\.\w+)\.|levels\.\w+\.collectives", path)
        if whole is not None:
            source = ledger.sources.pop(path)
            ledger.sources[whole[0].rstrip(".")] = source
    efficiency = found["device"]["efficiency"]
    if efficiency["source"].startswith("default"):
        del ledger.sources["device.efficiency"]
        ledger.unknown["device.efficiency"] = (
            "not known; it could come from timed matrix products, attention and copies on one "
            f"device. The default stands in its place, {efficiency['relative_error']:.0%} off in "
            f"the mean over the devices that were measured: {efficiency['source']}"
        )


def _bound_power(found: dict[str, Any], ledger: Ledger) -> None:
    """Bound what idle devices and whole nodes draw, where only a device's power is known."""
    device = found["device"]
    power_w = device.get("power_w") or 0.0
    if power_w and not device.get("idle_power_w"):
        device["idle_power_w"] = IDLE_SHARE * power_w
        ledger.unknown["device.idle_power_w"] = (
            "not known; it could come from a power meter on an idle device. "
            f"{device['idle_power_w']:g} stands in its place: the share that an idle H100 draws, "
            "114 of 700 W (github.com/huggingface/text-generation-inference issue 2572)"
        )
    if power_w and not found.get("node_power_w"):
        found["node_power_w"] = NODE_OVER_DEVICES * power_w * found["ranks_per_node"]
        ledger.unknown["node_power_w"] = (
            "not known; it could come from the maker's page of the node. "
            f"{found['node_power_w']:g} stands in its place: {NODE_OVER_DEVICES:g} times what its "
            "devices draw, as DGX A100 at 6,500 W, the largest ratio we have; errs to dear"
        )


def _derived_levels(found: Mapping[str, Any], ledger: Ledger) -> list[dict[str, Any]]:
    """The levels, with what follows from the node filled in: ranks of a unit, shares of adapters.

    A level may give `num_nodes` of one unit in place of `num_ranks`; the outermost one may leave
    both out. One that leaves out `link_bytes_per_s` is reached through the node's adapters.
    """
    ranks_per_node = found["ranks_per_node"]
    total = found["num_nodes"] * ranks_per_node
    share = found.get("nics_per_node", 0) * found.get("nic_bytes_per_s", 0.0) / ranks_per_node
    levels = []
    for index, one in enumerate(found["levels"]):
        level = dict(one)
        path = f"levels.{level.get('name', index)}"
        num_nodes = level.pop("num_nodes", None)
        if "num_ranks" not in level and num_nodes is not None:
            level["num_ranks"] = num_nodes * ranks_per_node
            ledger.sources[f"{path}.num_ranks"] = (
                f"{num_nodes} nodes x {ranks_per_node}; "
                f"{ledger.sources.pop(f'{path}.num_nodes', 'as the file says')}"
            )
        elif "num_ranks" not in level and index == len(found["levels"]) - 1:
            level["num_ranks"] = total
            ledger.sources[f"{path}.num_ranks"] = "num_nodes x ranks_per_node"
        if "link_bytes_per_s" not in level and share:
            level["link_bytes_per_s"] = share
            ledger.sources[f"{path}.link_bytes_per_s"] = (
                "nics_per_node x nic_bytes_per_s / ranks_per_node"
            )
        if "taper" not in level:
            ledger.sources[f"{path}.taper"] = "not given: taken not to be oversubscribed"
        for name in ("name", "network", "num_ranks", "link_bytes_per_s", "latency_s"):
            _require({"levels": {str(level.get("name", index)): level}}, f"{path}.{name}", ledger)
        levels.append(level)
    return levels


def machine_at(path: Path) -> Machine:
    """The machine in the TOML file at `path`."""
    return machine_from(read_toml(path), path.stem, path.name)
