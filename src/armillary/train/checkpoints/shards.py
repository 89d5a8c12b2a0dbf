"""The files of a checkpoint: torch's shards, and their index as JSON. Nothing is unpickled on read.

torch keeps the index of a distributed checkpoint as a pickle, and reads values that are no tensors
as one; either would run whatever code a damaged or foreign file holds. Here the index is JSON, and
all else is read with torch's reader of plain values alone (weights_only).
"""

import io
import json
import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
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
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.storage import WriteResult

from armillary.spec import SpecError, write_atomically
from armillary.train.checkpoints.saved import INDEX

SCHEMA = 1


class ShardWriter(FileSystemWriter):
    """torch's writer of one file a rank, synced to the disk, whose index is JSON."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, thread_count=1, single_file_per_rank=True, sync_files=True)
        self.folder = folder

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index of what all ranks have written; called on rank 0 alone."""
        stored = [result for of_rank in results for result in of_rank]
        write_atomically(self.folder / INDEX, json.dumps(_index(metadata, stored)))


class ShardReader(FileSystemReader):
    """torch's reader of shards by the JSON index beside them.

    Raises: `SpecError` if there is none.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.index = read_index(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index as torch wants it."""
        return self.index


class PlainLoader(DefaultLoadPlanner):
    """torch's plan of what to read, for values that are plain: numbers, words, lists of them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value that is no tensor into its place.

        Raises: `SpecError` if it holds anything that code would be run for.
        """
        name = read_item.dest_index.fqn
        try:
            found = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            raise SpecError(
                f"checkpoint.{name}",
                str(error).splitlines()[0],
                "a checkpoint holds tensors and plain values; code is never run from it",
                "take another checkpoint",
            ) from None
        set_element(self.original_state_dict, self.mappings[name], found)


def read_index(folder: Path) -> Metadata:
    """What the checkpoint in `folder` holds, as torch's planner reads it.

    Raises: `SpecError` if the index is absent, of another version, or points out of the folder.
    """
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"version {content['schema']}")
        return _metadata(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        old = (folder / ".metadata").exists()
        raise SpecError(
            "checkpoint",
            f"{folder / INDEX}: {error}",
            f"the index of a checkpoint is JSON of version {SCHEMA} (train/checkpoints/shards.py)",
            "a checkpoint of an earlier Armillary: resume it with that version"
            if old
            else "take another checkpoint",
        ) from None


def _index(metadata: Metadata, stored: list[WriteResult]) -> dict[str, Any]:
    entries = {
        name: _entry(found) if isinstance(found, TensorStorageMetadata) else None
        for name, found in metadata.state_dict_metadata.items()
    }
    places = [
        [
            result.index.fqn,
            None if result.index.offset is None else list(result.index.offset),
            result.index.index,
            result.storage_data.relative_path,
            result.storage_data.offset,
            result.storage_data.length,
        ]
        for result in stored
    ]
    paths = {name: list(path) for name, path in (metadata.planner_data or {}).items()}
    return {"schema": SCHEMA, "entries": entries, "paths": paths, "stored": places}


def _entry(found: TensorStorageMetadata) -> dict[str, Any]:
    return {
        "dtype": str(found.properties.dtype).removeprefix("torch."),
        "size": list(found.size),
        "chunks": [[list(chunk.offsets), list(chunk.sizes)] for chunk in found.chunks],
    }


def _metadata(content: dict[str, Any]) -> Metadata:
    places = {}
    for name, offset, hint, file, start, length in content["stored"]:
        if PurePath(file).name != file:
            raise ValueError(f"{file!r} is no file of the folder")
        places[MetadataIndex(name, offset, hint)] = _StorageInfo(file, int(start), int(length))
    return Metadata(
        state_dict_metadata={
            name: BytesStorageMetadata() if entry is None else _tensor(entry)
            for name, entry in content["entries"].items()
        },
        planner_data={name: tuple(path) for name, path in content["paths"].items()},
        storage_data=places,
        storage_meta=StorageMeta(),
    )


def _tensor(entry: dict[str, Any]) -> TensorStorageMetadata:
    dtype = getattr(torch, entry["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{entry['dtype']!r} is no dtype")
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=dtype),
        size=torch.Size(entry["size"]),
        chunks=[
            ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
            for offsets, sizes in entry["chunks"]
        ],
    )
