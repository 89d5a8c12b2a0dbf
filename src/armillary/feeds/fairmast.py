"""FAIR-MAST: the public archive of the Mega Amp Spherical Tokamak, read shot by shot.

The archive is a bucket `mast` at https://s3.echo.stfc.ac.uk, open without keys; each shot is a
Zarr folder, `level1/shots/<id>.zarr` (as recorded) or `level2/shots/<id>.zarr` (calibrated, on
common time bases, with names after IMAS), and in it a group for each diagnostic.

Sources: ukaea/fair-mast, docs/level2-data.ipynb and docs/bulk_download.ipynb at commit ce16134
(bucket, endpoint, anonymous access); ukaea/fair-mast-ingestion, mappings/level2/mast.yml at
commit ab435c7 (names of groups and signals, their diagnostics, and that level 2 is brought to
its time bases by holding the last value); S. Jackson et al., SoftwareX 27 (2024) 101869.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TextIO

import numpy as np

from armillary.feeds.resample import Samples, resample
from armillary.feeds.shots import STEP_S, VARIABLES, write_shots
from armillary.spec import SpecError

if TYPE_CHECKING:
    from armillary.feeds.shot import Shot
    from armillary.feeds.stores import StoreAddress

ENDPOINT = "https://s3.echo.stfc.ac.uk"
LEVEL2_URL = "s3://mast/level2/shots"

FIRST_ROW_S = 0.015
"""Tables begin at the first EFIT slice after 10 ms, as `mast_level2.npz` does (its maker's script
scripts/download_mast_level2.py, mladen1312/FusionMind-4-CausalPlasma at commit 0c87de2)."""
TABLE_SIGNALS: dict[str, tuple[str, ...]] = {
    "betan": ("equilibrium/beta_tor_normal", "equilibrium/beta_normal"),
    "betap": ("equilibrium/beta_pol",),
    "betat": ("equilibrium/beta_tor",),
    "q95": ("equilibrium/q95",),
    "elongation": ("equilibrium/elongation",),
    "li": ("equilibrium/li",),
    "wmhd": ("equilibrium/wmhd", "equilibrium/whmd"),
    "q_axis": ("equilibrium/q_axis",),
    "minor_radius": ("equilibrium/minor_radius",),
    "tribot": ("equilibrium/triangularity_lower",),
    "tritop": ("equilibrium/triangularity_upper",),
    "Ip": ("summary/ip", "summary/plasma_current", "magnetics/ip"),
    "ne_line": ("summary/line_average_n_e", "summary/line_averaged_density"),
    "greenwald_den": ("summary/greenwald_density",),
    "p_rad": ("summary/power_radiated",),
    "p_nbi": ("summary/power_nbi", "summary/total_power"),
}
"""The table's variables by the names of the store: today's first, then those of older copies
(the Zarr folders in ukaea/toktagger, commit 8c58bec), where `total_power` is that of the two
neutral beams (its description there: "Total of SS and SW Powers")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FairMast:
    """The archive, or a copy of it: `shots()` lists, `open(30421)` reads one.

    `url` may also be a local folder that holds `<id>.zarr` folders or `<id>.zarr.zip` files.
    Keys are needed only by private copies. It holds no connection, so it can go to another process.

    Example:
        >>> FairMast().url
        's3://mast/level2/shots'
    """

    url: str = LEVEL2_URL
    endpoint: str | None = ENDPOINT
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    retry_s: float = 60.0
    timeout_s: float = 30.0
    cache: Path | None = None

    @property
    def address(self) -> StoreAddress:
        """The store's address.

        Raises:
            SpecError: the url is no address, or the packages that read stores are not installed.
        """
        stores = _stores()
        address: StoreAddress = stores.StoreAddress(
            url=self.url,
            endpoint=self.endpoint,
            region=self.region,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            retry_s=self.retry_s,
            timeout_s=self.timeout_s,
            cache=self.cache,
        )
        return address

    def shots(self) -> list[int]:
        """The ids of all shots of the store, in order.

        Raises:
            SpecError: the store cannot be reached, or refuses to list.
        """
        return sorted(self._entries())

    def open(self, shot_id: int) -> Shot:
        """One shot; its signals are read when asked for.

        Raises:
            SpecError: no such shot, or the store cannot be reached.
        """
        stores = _stores()
        import zarr
        from zarr.errors import GroupNotFoundError

        from armillary.feeds.shot import Shot

        address = self.address
        name = f"{shot_id}.zarr"
        if address.is_local and (address.folder / f"{name}.zip").is_file():
            name += ".zip"
        if address.is_local and not (address.folder / name).exists():
            raise self._no_such_shot(shot_id)
        store = stores.zarr_store(address, name)
        root = None
        where, rule = f"fairmast.{shot_id}", "a shot begins with the metadata of a Zarr group"
        reading = stores.decoding(where, rule)
        with stores.answering(address), reading, suppress(GroupNotFoundError):
            root = zarr.open_group(store, mode="r")
        if root is None:
            raise self._no_such_shot(shot_id)
        return Shot(shot_id, root, address)

    def _entries(self) -> dict[int, str]:
        entries = {}
        for name in _stores().entry_names(self.address):
            stem = name.removesuffix(".zip").removesuffix(".zarr")
            if stem.isdigit() and stem != name:
                entries[int(stem)] = name
        return entries

    def _no_such_shot(self, shot_id: int) -> SpecError:
        known = self.shots()
        near = sorted(known, key=lambda other: abs(other - shot_id))[:4]
        return SpecError(
            "fairmast.shot",
            f"{shot_id} is not in {self.address.place} ({len(known)} shots)",
            "level 2 holds the shots with a plasma; others exist in level 1 only",
            f"use one of {', '.join(map(str, near))}" if near else "check url: no shot lies there",
        )


def table_rows(shot: Shot, step_s: float = STEP_S) -> Samples:
    """The 16 variables of a table for one shot, from 15 ms to its last equilibrium, NaN if unknown.

    Where the store has no Greenwald density it is |Ip| / (pi a^2), in 1e20/m^3 for MA and m.

    Source: M. Greenwald, Plasma Phys. Control. Fusion 44 (2002) R27. Against the store's own
    values in mast_level2.npz (44,084 rows with |Ip| > 200 kA and a > 0.3 m) the ratio is 0.995 in
    the median and 0.935 to 1.042 between the 5th and 95th percentile.

    Raises:
        SpecError: the shot has no plasma current, or cannot be read.
    """
    if not any(path in shot for path in TABLE_SIGNALS["Ip"]):
        raise SpecError(
            f"fairmast.{shot.shot_id}",
            "no plasma current",
            f"a table needs one of {', '.join(TABLE_SIGNALS['Ip'])} (feeds/fairmast.py)",
            "leave the shot out",
        )
    ends = next((shot[path].time_s for path in ("equilibrium/q95",) if path in shot), None)
    stop_s = None if ends is None or not np.isfinite(ends).any() else float(np.nanmax(ends))
    samples = resample(
        shot, TABLE_SIGNALS, shot_id=shot.shot_id, step_s=step_s, start_s=FIRST_ROW_S, stop_s=stop_s
    )
    if "greenwald_den" in samples.missing:
        current_T = np.abs(samples.values[:, VARIABLES.index("Ip")]).astype(np.float64)
        radius_T = samples.values[:, VARIABLES.index("minor_radius")].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            limit_T = 1e20 * (current_T / 1e6) / (np.pi * radius_T**2)
        limit_T[~(radius_T > 0)] = np.nan
        column = VARIABLES.index("greenwald_den")
        samples.values[:, column] = limit_T
        samples.mask[:, column] = np.isfinite(limit_T)
        still = tuple(name for name in samples.missing if name != "greenwald_den")
        samples = replace(samples, missing=still)
    return samples


def export_npz(
    store: FairMast,
    shot_ids: Iterable[int],
    out: str | Path,
    report: Callable[[str], None] | None = None,
) -> tuple[Path, list[tuple[int, str]]]:
    """The table written, and the shots left out, each with its reason.

    A shot that is missing or damaged is left out; a store that does not answer ends the export.

    Raises:
        SpecError: the store does not answer, or no shot could be read.
    """
    say = report or (lambda line: None)
    parts: list[Samples] = []
    skipped: list[tuple[int, str]] = []
    for shot_id in shot_ids:
        try:
            samples = table_rows(store.open(shot_id))
        except SpecError as fault:
            if fault.where.startswith("store."):
                raise
            skipped.append((shot_id, f"{fault.where}: {fault.found}"))
            say(f"{shot_id}  skipped: {fault.found}")
            continue
        parts.append(samples)
        lacks = f", without {' '.join(samples.missing)}" if samples.missing else ""
        say(f"{shot_id}  {len(samples.time_s)} rows{lacks}")
    if not parts:
        raise SpecError(
            "fairmast.shots",
            f"none of {len(skipped)} shots could be read",
            "a table holds at least one shot",
            f"the first: {skipped[0][1]}" if skipped else "name shots: --shots 30421,30430",
        )
    ids = np.concatenate([np.full(len(part.time_s), part.shot_id) for part in parts])
    data = np.concatenate([part.values for part in parts])
    times = np.concatenate([part.time_s for part in parts])
    return write_shots(out, ids, data, times), skipped


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the table is written, 2 when what was asked for cannot be done (said on stderr)."""
    parser = argparse.ArgumentParser(
        prog="python -m armillary.feeds.fairmast",
        description="Build a table of shots (.npz) from the FAIR-MAST archive.",
    )
    parser.add_argument("--shots", required=True, help="ids, 30421,30430; or: all")
    parser.add_argument("--out", required=True, type=Path, help="the .npz to write")
    parser.add_argument("--url", default=LEVEL2_URL, help="the store, or a local folder of shots")
    parser.add_argument("--endpoint", default=ENDPOINT)
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--cache", type=Path, help="a folder that keeps what was read")
    parser.add_argument("--retry-s", type=float, default=60.0, help="patience with a lost store")
    given = parser.parse_args(arguments)
    store = FairMast(
        url=given.url,
        endpoint=given.endpoint,
        region=given.region,
        cache=given.cache,
        retry_s=given.retry_s,
    )
    try:
        shot_ids = store.shots() if given.shots == "all" else _shot_ids(given.shots)
        out, skipped = export_npz(store, shot_ids, given.out, lambda line: _say(sys.stderr, line))
    except SpecError as fault:
        _say(sys.stderr, str(fault))
        return 2
    _say(sys.stdout, f"{out}: {len(shot_ids) - len(skipped)} shots, {len(skipped)} left out")
    return 0


def _say(stream: TextIO, line: str) -> None:
    stream.write(f"{line}\n")


def _shot_ids(text: str) -> list[int]:
    try:
        return [int(piece) for piece in text.split(",") if piece.strip()]
    except ValueError as bad:
        raise SpecError(
            "fairmast.shots",
            f"{text!r}",
            "shots are whole numbers, separated by commas, or the word all",
            "for example --shots 30421,30430",
        ) from bad


def _stores() -> ModuleType:
    """The module that talks to stores, which needs packages of the extra [fusion]."""
    try:
        from armillary.feeds import stores
    except ModuleNotFoundError as missing:
        raise SpecError(
            "fairmast",
            f"the package {missing.name} is not installed",
            "stores are read with zarr and obstore, which the plain package does without",
            "pip install 'armillary[fusion]'",
        ) from missing
    return stores


if __name__ == "__main__":
    sys.exit(main())
