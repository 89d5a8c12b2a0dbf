"""One shot of a Zarr store as a mapping of signals, each read when it is asked for.

The layout is that of FAIR-MAST (feeds/fairmast.py): a group for each diagnostic, in it arrays with
named dims, and for the dim of time an array of that name. Zarr formats 2 and 3 are both read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import NodeNotFoundError

from armillary.feeds.resample import Signal
from armillary.feeds.stores import StoreAddress, answering, decoding
from armillary.spec import SpecError

METADATA_RULE = "metadata of Zarr are JSON with the keys of its format 2 or 3"


class Shot(Mapping[str, Signal]):
    """One shot: a mapping of `group/signal` to its Signal, read on demand.

    Signals are the numeric arrays with a dim of time; their other dims (channels, radii) follow it.
    A chunk that the archive left out because it held only NaN reads as NaN (Zarr's fill value).
    """

    def __init__(self, shot_id: int, root: zarr.Group, address: StoreAddress) -> None:
        self.shot_id = shot_id
        self._root = root
        self._address = address
        self._groups: dict[str, zarr.Group | None] = {}

    def __getitem__(self, path: str) -> Signal:
        """
        Raises:
            KeyError: the shot has no such signal.
            SpecError: it cannot be read, or its bytes are not what its metadata promise.
        """
        group_name = path.rpartition("/")[0]
        array = self._array(path)
        time_name = None if array is None else _time_dim(array)
        if array is None or time_name is None:
            raise KeyError(path)
        clock = self._array(f"{group_name}/{time_name}")
        if clock is None:
            raise SpecError(
                f"fairmast.{self.shot_id}.{path}",
                f"has no times: {group_name}/{time_name} is missing",
                "a signal needs the coordinate of its time dim (feeds/shot.py)",
                "report the shot to FAIR-MAST, or leave the signal out",
            )
        time_T = self._read(f"{group_name}/{time_name}", clock).astype(np.float64)
        values = self._read(path, array)
        values = np.moveaxis(values, _dims(array).index(time_name), 0)
        return Signal(time_T, values, str(array.attrs.get("units") or ""))

    def __contains__(self, path: object) -> bool:
        array = self._array(path) if isinstance(path, str) else None
        return array is not None and _time_dim(array) is not None

    def __iter__(self) -> Iterator[str]:
        with self._reading("groups"):
            group_names = sorted(self._root.group_keys())
        for group_name in group_names:
            group = self._group(group_name)
            assert group is not None
            with self._reading(group_name):
                arrays = sorted(group.arrays(), key=lambda item: item[0])
            for name, array in arrays:
                time_name = _time_dim(array)
                if time_name is not None and name != time_name:
                    yield f"{group_name}/{name}"

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _group(self, name: str) -> zarr.Group | None:
        if name not in self._groups:
            found = None
            with self._reading(name), suppress(NodeNotFoundError):
                # by path, so that the group's own consolidated metadata is used: one request
                found = zarr.open_group(self._root.store, path=name, mode="r")
            self._groups[name] = found
        return self._groups[name]

    def _array(self, path: str) -> zarr.Array[Any] | None:
        group_name, _, name = path.rpartition("/")
        group = self._group(group_name) if group_name else None
        if group is None:
            return None
        with self._reading(path):
            found = group.get(name)
        return found if isinstance(found, zarr.Array) else None

    @contextmanager
    def _reading(self, path: str, rule: str = METADATA_RULE) -> Iterator[None]:
        with answering(self._address), decoding(f"fairmast.{self.shot_id}.{path}", rule):
            yield

    def _read(self, path: str, array: zarr.Array[Any]) -> NDArray[Any]:
        with self._reading(path, f"a chunk of it holds {array.chunks} values of {array.dtype}"):
            return np.asarray(array[...])


def _dims(array: zarr.Array[Any]) -> list[str]:
    """Names of an array's dims: in Zarr v3's metadata, or in xarray's attribute for v2."""
    named: Any = getattr(array.metadata, "dimension_names", None)
    named = named or array.attrs.get("_ARRAY_DIMENSIONS")
    return [str(name) for name in named] if named and len(named) == array.ndim else []


def _time_dim(array: zarr.Array[Any]) -> str | None:
    """The dim of time of a numeric array: `time`, or a clock of its own such as `time_mirnov`."""
    if array.dtype.kind not in "fiu":
        return None
    return next((name for name in _dims(array) if name.split("_")[0] == "time"), None)
