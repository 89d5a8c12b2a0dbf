"""How torch's distributed checkpoint is kept on disk without pickles of any kind of object.

torch itself writes the index of a checkpoint as a pickle and reads values that are no tensors with
a full unpickler: whoever can write such a file runs code in the job that reads it. Here the index
is JSON, and every value is read by torch's unpickler of tensors and plain values alone.
"""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import (
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.utils._pytree import tree_map_only

from armillary.spec import SpecError, write_atomically
from armillary.train.checkpoint import INDEX

SCHEMA = 1


class PlainWriter(FileSystemWriter):
    """Writes shards as torch does, and their index as JSON."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index of what all ranks wrote; on the coordinating rank alone."""
        places = {one.index: one.storage_data for rank in results for one in rank}
        write_atomically(Path(self.path) / INDEX, _index_text(metadata, places))


class PlainReader(FileSystemReader):
    """Reads what `PlainWriter` wrote.

    Raises: `SpecError` if the index is not there or not whole; torch's own reading would tell it
    in tracebacks.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._index = self._read_index()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index."""
        return self._index

    def _read_index(self) -> Metadata:
        path = Path(self.path) / INDEX
        try:
            found = _index(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SpecError(
                "checkpoints",
                f"{path.parent.name}/{INDEX}: {getattr(error, 'strerror', None) or error!r}",
                f"a checkpoint has a JSON index of schema {SCHEMA} (train/plain_storage.py)",
                "resume with the version that wrote it, or from another checkpoint",
            ) from None
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found

    def _slice_file(self, file: IO[bytes], sinfo: _StorageInfo) -> IO[bytes]:
        """The part of a shard that the index names, which has to be one of this checkpoint's."""
        if Path(sinfo.relative_path).name != sinfo.relative_path:
            raise _refused(sinfo.relative_path, "is a path out of the checkpoint's folder")
        return super()._slice_file(file, sinfo)


class PlainSaving(DefaultSavePlanner):
    """Lets into a checkpoint only what can be read back without a full unpickler."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        """The value as it is written: NumPy's numbers become Python's.

        Raises: `SpecError` on a value that is neither a tensor nor plain.
        """
        if write_item.type != WriteItemType.BYTE_IO:
            return super().transform_object(write_item, object)
        plain = tree_map_only(np.generic, lambda number: number.item(), object)
        written: io.BytesIO = super().transform_object(write_item, plain)
        _unpacked(io.BytesIO(written.getvalue()), str(write_item.index.fqn))
        return written


class PlainLoading(DefaultLoadPlanner):
    """Reads values that are no tensors without a full unpickler."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put the value that `value` holds into the state."""
        assert read_item.type == LoadItemType.BYTE_IO
        name = str(read_item.dest_index.fqn)
        set_element(self.original_state_dict, self.mappings[name], _unpacked(value, name))


def _unpacked(content: io.BytesIO, name: str) -> Any:
    try:
        return torch.load(content, weights_only=True)
    except Exception as error:
        raise _refused(name, str(error).strip().splitlines()[0]) from None


def _refused(name: str, found: str) -> SpecError:
    return SpecError(
        "checkpoints",
        f"{name}: {found}",
        "a checkpoint holds tensors and plain values, and nothing in it is run "
        "(train/plain_storage.py)",
        "keep numbers, text, lists and tensors alone in optimisers and schedules; a checkpoint "
        "that came from elsewhere may have been made to do harm",
    )


def _index_text(metadata: Metadata, places: Mapping[MetadataIndex, _StorageInfo]) -> str:
    """The index as JSON: every entry with its path in the state, its kind, and where it lies."""
    lying: dict[str, list[dict[str, Any]]] = {}
    for index, info in places.items():
        offset = None if index.offset is None else list(index.offset)
        lying.setdefault(index.fqn, []).append(
            {
                "offset": offset,
                "file": os.fspath(info.relative_path),
                "start": info.offset,
                "bytes": info.length,
            }
        )
    paths = metadata.planner_data or {}
    entries = {
        name: _entry(kind) | {"path": list(paths.get(name, (name,))), "places": lying[name]}
        for name, kind in metadata.state_dict_metadata.items()
    }
    return json.dumps({"schema": SCHEMA, "entries": entries}) + "\n"


def _entry(kind: TensorStorageMetadata | BytesStorageMetadata) -> dict[str, Any]:
    if isinstance(kind, BytesStorageMetadata):
        return {}
    chunks = [[list(chunk.offsets), list(chunk.sizes)] for chunk in kind.chunks]
    dtype = str(kind.properties.dtype).removeprefix("torch.")
    return {"dtype": dtype, "size": list(kind.size), "chunks": chunks}


def _index(values: Mapping[str, Any]) -> Metadata:
    """The index that `values` tell of."""
    if values["schema"] != SCHEMA:
        raise ValueError(f"schema {values['schema']}")
    kinds: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for name, entry in values["entries"].items():
        kinds[name] = _kind(entry)
        for place in entry["places"]:
            index = MetadataIndex(name, place["offset"])
            places[index] = _StorageInfo(str(place["file"]), place["start"], place["bytes"])
    paths = {name: tuple(entry["path"]) for name, entry in values["entries"].items()}
    return Metadata(state_dict_metadata=kinds, planner_data=paths, storage_data=places)


def _kind(entry: Mapping[str, Any]) -> TensorStorageMetadata | BytesStorageMetadata:
    if "dtype" not in entry:
        return BytesStorageMetadata()
    dtype = getattr(torch, entry["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {entry['dtype']}")
    chunks = [
        ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
        for offsets, sizes in entry["chunks"]
    ]
    properties = TensorProperties(dtype=dtype)
    return TensorStorageMetadata(
        properties=properties, size=torch.Size(entry["size"]), chunks=chunks
    )
