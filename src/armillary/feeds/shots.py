"""Tables of shots: one `.npz` that holds the slow signals of many shots, every 5 ms.

The format is that of the `mast_level2.npz` tables made from FAIR-MAST level 2: `data` (N, 16)
float, `shot_ids` (N,) int, `variables` (16,) str; here also, where the file has it, `time_s` (N,).
Rows of a shot stand together and in time order.

Letters of shapes: N rows of the file, T rows of one shot, V variables.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.spec import SpecError

TABLE_NAME = "mast_level2.npz"
STEP_S = 0.005
"""Row spacing of the tables: EFIT ran every 5 ms on MAST (FAIR-MAST level 2, `equilibrium/time`).
Where EFIT left out slices, mostly at the ends of a shot, rows of an upstream table lie further
apart than this, and the table does not say so."""

VARIABLES = (
    *("betan", "betap", "betat", "q95", "elongation", "li", "wmhd", "q_axis"),
    *("minor_radius", "tribot", "tritop", "Ip", "ne_line", "greenwald_den", "p_rad", "p_nbi"),
)
"""The 16 variables, in the order of the table: SI units, densities in 1/m^3, ratios plain."""

MIN_ROWS = 3
"""The fewest rows of a shot that can show a rise, a top and a fall of the current."""

ENVIRONMENT_NAME = "ARMILLARY_DATA"
_FETCH = (
    "pass a path, set ARMILLARY_DATA, or fetch shots from the public store: "
    "python -m armillary.feeds.fairmast --shots 30421,30430 --out shots.npz (docs/data.md)"
)
_FORMAT_RULE = (
    "a shot table is an .npz with data (N, 16), shot_ids (N,) and variables (16,) (feeds/shots.py)"
)


Rows = slice | NDArray[np.int64]
"""Rows of a file: a stretch of them, or their indices where they stand apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotTable:
    """Many shots in memory: `series[i]` (T, V) float32 belongs to `shot_ids[i]`.

    `rows[i]` says which rows of the file they are, of `num_rows` in all; `time_s[i]` (T,) counts
    from the first row where the file carries no times (`has_times` False). `row_shot_ids` and
    `row_time_s` (num_rows,) are of every row of the file, used or not. `skipped` names the shots
    left out, each with its reason; `doubtful` those kept although they have one. `fingerprint` is
    a hash of the content, not of the file: the same numbers compressed anew keep it.
    """

    path: Path
    variables: tuple[str, ...]
    shot_ids: tuple[int, ...]
    series: tuple[NDArray[np.float32], ...]
    time_s: tuple[NDArray[np.float64], ...]
    rows: tuple[Rows, ...]
    num_rows: int
    row_shot_ids: NDArray[np.int64]
    row_time_s: NDArray[np.float64]
    has_times: bool
    skipped: tuple[tuple[int, str], ...]
    doubtful: tuple[tuple[int, str], ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.shot_ids)

    def column(self, name: str) -> int:
        """The index of a variable in the last dim of `series`.

        Raises:
            SpecError: no such variable.
        """
        if name not in self.variables:
            raise SpecError(
                "shots.variables",
                f"no variable {name!r}",
                "a column is named as in the table (feeds/shots.py)",
                f"use one of {', '.join(self.variables)}",
            )
        return self.variables.index(name)


def find_shots(path: str | Path | None = None) -> Path:
    """The `.npz` table that `path`, or else the variable ARMILLARY_DATA, leads to.

    A path is the file itself, or a folder with `mast_level2.npz` or
    `mast-shots-5ms/mast_level2.npz` in it.

    Raises:
        SpecError: nothing was named, or it leads to no table.
    """
    named = path if path is not None else os.environ.get(ENVIRONMENT_NAME) or None
    if named is None:
        raise SpecError(
            "data.path",
            "no data set was named",
            "shot data comes from a path or from ARMILLARY_DATA; none is in the package",
            _FETCH,
        )
    where = "data.path" if path is not None else ENVIRONMENT_NAME
    found = Path(named).expanduser()
    try:
        if not found.exists():
            raise SpecError(where, f"{found} does not exist", "a path must lead to a table", _FETCH)
        if not found.is_dir():
            return found
        tries = (found / TABLE_NAME, found / "mast-shots-5ms" / TABLE_NAME)
        for candidate in tries:
            if candidate.is_file():
                return candidate
    except PermissionError as refused:
        raise _unreadable(found, refused) from refused
    raise SpecError(
        where,
        f"{found} holds no shot table",
        f"a folder of data has {TABLE_NAME} or mast-shots-5ms/{TABLE_NAME} (feeds/shots.py)",
        f"name the .npz file itself, or {_FETCH}",
    )


def read_shots(path: str | Path | None = None, *, keep_all: bool = False) -> ShotTable:
    """A table of shots, checked; a shot that cannot be used is reported in `skipped`.

    With `keep_all`, for shots to be scored, none is left out, so that every row of the file is in
    one: what is wrong with a shot is reported in `doubtful`, and rows of a shot that stand in
    several places are taken in the order of the file.

    Shapes: `series[i]` is (T_i, 16) float32 with the columns in the order of VARIABLES, whatever
    their order in the file. NaN stays NaN.

    Raises:
        SpecError: the path, the file or the form of its arrays is not that of a shot table, or no
            shot of it can be used.
    """
    file = find_shots(path)
    arrays = _load(file)
    data, shot_ids = _checked(file, arrays)
    times = _checked_times(file, arrays.get("time_s"), len(data))
    row_time_s = np.empty(len(data))
    kept: list[tuple[int, Rows]] = []
    faulty: list[tuple[int, str]] = []
    for shot_id, places in _places(shot_ids).items():
        rows = places[0] if len(places) == 1 else np.concatenate([_indices(one) for one in places])
        row_time_s[rows] = np.arange(len(data[rows])) * STEP_S if times is None else times[rows]
        reason = _fault(data[rows], None if times is None else times[rows])
        if len(places) > 1:
            reason = f"its rows stand in {len(places)} separate places"
        if reason is not None:
            faulty.append((shot_id, reason))
        if reason is None or keep_all:
            kept.append((shot_id, rows))
    if not kept:
        raise SpecError(
            f"{file.name}.data",
            f"none of {len(faulty)} shots can be used; the first: {faulty[0][1]}",
            "a shot has 3 or more rows and a finite plasma current (feeds/shots.py)",
            _FETCH,
        )
    return ShotTable(
        path=file,
        variables=VARIABLES,
        shot_ids=tuple(shot_id for shot_id, _ in kept),
        series=tuple(data[rows] for _, rows in kept),
        time_s=tuple(row_time_s[rows] for _, rows in kept),
        rows=tuple(rows for _, rows in kept),
        num_rows=len(data),
        row_shot_ids=np.asarray(shot_ids, np.int64),
        row_time_s=row_time_s,
        has_times=times is not None,
        skipped=() if keep_all else tuple(faulty),
        doubtful=tuple(faulty) if keep_all else (),
        fingerprint=fingerprint(data, shot_ids, times),
    )


def write_shots(
    path: str | Path,
    shot_ids: NDArray[Any],
    data: NDArray[Any],
    time_s: NDArray[Any] | None = None,
) -> Path:
    """The path of a table just written: whole or, when writing fails, not at all.

    Shapes: data (N, 16) with the columns of VARIABLES; shot_ids (N,); time_s (N,).
    """
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    arrays: dict[str, NDArray[Any]] = {
        "data": np.asarray(data, np.float32),
        "shot_ids": np.asarray(shot_ids, np.int32),
        "variables": np.array(VARIABLES),
    }
    if time_s is not None:
        arrays["time_s"] = np.asarray(time_s, np.float64)
    try:
        with partial.open("wb") as sink:
            np.savez_compressed(sink, allow_pickle=False, **arrays)
            sink.flush()
            os.fsync(sink.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def fingerprint(
    data: NDArray[np.float32],
    shot_ids: NDArray[np.int64],
    times: NDArray[np.float64] | None = None,
) -> str:
    """`sha256:` and the hash of a table's numbers, columns in the order of VARIABLES."""
    digest = hashlib.sha256()
    digest.update(repr((VARIABLES, data.shape, times is not None)).encode())
    digest.update(np.ascontiguousarray(shot_ids, "<i8").tobytes())
    digest.update(np.ascontiguousarray(data, "<f4").tobytes())
    if times is not None:
        digest.update(np.ascontiguousarray(times, "<f8").tobytes())
    return f"sha256:{digest.hexdigest()}"


def _load(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with file.open("rb") as source:
            magic = source.read(4)
        if not zipfile.is_zipfile(file):
            raise _not_a_table(file, magic)
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except SpecError:
        raise
    except PermissionError as refused:
        raise _unreadable(file, refused) from refused
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as broken:
        raise SpecError(
            f"{file.name}",
            f"cannot be read: {_first_line(broken)}",
            _FORMAT_RULE,
            f"the file is damaged or of another kind; copy it again, or {_FETCH}",
        ) from broken


def _not_a_table(file: Path, magic: bytes) -> SpecError:
    size_bytes = file.stat().st_size
    if size_bytes == 0:
        found = "is empty (0 bytes)"
    elif magic == b"PK\x03\x04":
        found = f"is cut short: a zip of {size_bytes} bytes without its end"
    else:
        found = f"is not a zip archive (it begins with {magic!r})"
    return SpecError(file.name, found, _FORMAT_RULE, f"copy the whole file again, or {_FETCH}")


def _unreadable(path: Path, refused: PermissionError) -> SpecError:
    return SpecError(
        "data.path",
        f"{path} may not be read ({refused.strerror})",
        "the table and the folders above it must be readable by the one who trains",
        f"chmod u+r {path}, or name a copy that you may read",
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _checked(
    file: Path, arrays: dict[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    missing = [key for key in ("data", "shot_ids", "variables") if key not in arrays]
    if missing:
        present = ", ".join(sorted(arrays)) or "nothing"
        raise SpecError(
            file.name, f"lacks {', '.join(missing)}; it holds {present}", _FORMAT_RULE, _FETCH
        )
    data, shot_ids = arrays["data"], arrays["shot_ids"]
    names = [str(name) for name in np.atleast_1d(arrays["variables"])]
    if data.ndim != 2 or data.dtype.kind not in "fiu":
        raise _shape_error(file, "data", data, "(rows, variables) of numbers")
    if shot_ids.shape != (len(data),) or shot_ids.dtype.kind not in "fiu":
        raise _shape_error(
            file, "shot_ids", shot_ids, f"({len(data)},) of integers, as many as data"
        )
    if len(names) != data.shape[1]:
        raise _shape_error(file, "variables", arrays["variables"], f"({data.shape[1]},), as data")
    absent = [name for name in VARIABLES if name not in names]
    if absent:
        raise SpecError(
            f"{file.name}.variables",
            f"lacks {', '.join(absent)}",
            f"a shot table has all of {' '.join(VARIABLES)} (feeds/shots.py)",
            "name the columns so; a channel that was not measured is a column of NaN",
        )
    if len(data) == 0:
        raise SpecError(f"{file.name}.data", "has no rows", _FORMAT_RULE, _FETCH)
    whole = shot_ids.astype(np.int64) if np.isfinite(shot_ids).all() else None
    if whole is None or not np.array_equal(whole, shot_ids):
        raise _shape_error(file, "shot_ids", shot_ids, "whole numbers, without NaN")
    columns = [names.index(name) for name in VARIABLES]
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which is reported
        return np.ascontiguousarray(data[:, columns], np.float32), whole


def _shape_error(file: Path, key: str, array: NDArray[Any], wanted: str) -> SpecError:
    return SpecError(
        f"{file.name}.{key}",
        f"has shape {array.shape} of {array.dtype}",
        f"{key} must be {wanted} (feeds/shots.py)",
        f"write the table with armillary.feeds.shots.write_shots, or {_FETCH}",
    )


def _checked_times(
    file: Path, times: NDArray[Any] | None, num_rows: int
) -> NDArray[np.float64] | None:
    if times is None:
        return None
    if times.shape != (num_rows,) or times.dtype.kind not in "fiu":
        raise _shape_error(file, "time_s", times, f"({num_rows},) of seconds, as many as data")
    return times.astype(np.float64)


def _places(shot_ids: NDArray[np.int64]) -> dict[int, list[slice]]:
    """For each shot, in order of its first row, the stretches of the file that its rows fill."""
    edges = np.flatnonzero(np.diff(shot_ids)) + 1
    starts = [0, *edges.tolist()]
    stops = [*edges.tolist(), len(shot_ids)]
    places: dict[int, list[slice]] = {}
    for start, stop in zip(starts, stops, strict=True):
        places.setdefault(int(shot_ids[start]), []).append(slice(start, stop))
    return places


def _indices(stretch: slice) -> NDArray[np.int64]:
    return np.arange(stretch.start, stretch.stop, dtype=np.int64)


def _fault(data_TV: NDArray[np.float32], time_T: NDArray[np.float64] | None) -> str | None:
    """Why a shot cannot be used, or None. NaN is no fault unless it is the whole current."""
    if len(data_TV) < MIN_ROWS:
        return f"it has {len(data_TV)} rows, fewer than {MIN_ROWS}"
    current_T = data_TV[:, VARIABLES.index("Ip")]
    if np.isnan(current_T).all():
        return "its plasma current Ip is NaN throughout"
    infinite = np.isinf(data_TV)
    if infinite.any():
        names = [VARIABLES[column] for column in np.flatnonzero(infinite.any(axis=0))]
        return f"it holds infinite values of {', '.join(names)}"
    if not np.nanmax(np.abs(current_T)) > 0:
        return "its plasma current Ip is 0 throughout"
    if time_T is not None and not (np.diff(time_T) > 0).all():
        return "its times do not rise"
    return None
