"""What a run has saved: which checkpoints there are, whether they are whole, how one is read."""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist

from armillary.spec import SpecError
from armillary.step.world import World

COMPLETE, INDEX = "complete.json", "shards.json"


def checkpoint_path(folder: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}"


def saved_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in `folder`, oldest first."""
    found = (re.fullmatch(r"step-(\d+)", path.name) for path in folder.glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def best_step(folder: Path) -> int | None:
    """The step of the best checkpoint, None if none was marked."""
    path = folder / "best.json"
    return json.loads(path.read_text(encoding="utf-8"))["step"] if path.is_file() else None


def find_fault(path: Path, index: int = 0, count: int = 1) -> str | None:
    """What is wrong with the checkpoint at `path`, None if every file has its recorded hash.

    Of `count` ranks that look at once, each looks at the files that fall to its `index`.
    """
    try:
        hashes = json.loads((path / COMPLETE).read_text(encoding="utf-8"))["sha256"]
        for name in sorted(hashes)[index::count]:
            if sha256(path / name) != hashes[name]:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def newest_whole(folder: Path, world: World | None = None) -> tuple[int, list[str]]:
    """The step of the newest undamaged checkpoint, and what was passed over, in words.

    With a `world` all its ranks call this: each reads a part of the files, and all get the same.

    Raises: `SpecError` if there is none.
    """
    passed_over: list[str] = []
    for step in reversed(_agreed(saved_steps(folder), world)):
        fault = _fault_of_all(checkpoint_path(folder, step), world)
        if fault is None:
            return step, passed_over
        passed_over.append(f"checkpoint step-{step:08d} passed over: {fault}")
    raise SpecError(
        "checkpoints",
        "; ".join(passed_over) or f"none in {folder}",
        "a run goes on from an undamaged checkpoint",
        "start a new run, or restore the checkpoint's files",
    )


def _agreed(steps: list[int], world: World | None) -> list[int]:
    """The steps as rank 0 sees them."""
    found = [steps]
    if world is not None and world.mesh is not None:
        dist.broadcast_object_list(found)
    return found[0]


def _fault_of_all(path: Path, world: World | None) -> str | None:
    if world is None or world.mesh is None:
        return find_fault(path)
    found: list[str | None] = [None] * world.num_ranks
    dist.all_gather_object(found, find_fault(path, world.rank, world.num_ranks))
    return next((fault for fault in found if fault is not None), None)


def load(path: Path, state: dict[str, Any], *, serial: bool = False) -> None:
    """Fill the tensors and values of `state` in place from the checkpoint at `path`.

    Raises: `SpecError` if it holds what is neither a tensor nor a plain value.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    from armillary.train.checkpoints.shards import PlainLoader, ShardReader

    if serial:
        expect_serial()
    try:
        dcp.load(state, storage_reader=ShardReader(path), planner=PlainLoader(), no_dist=serial)
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, SpecError):
                raise failure from None
        raise


def holds(path: Path, key: str) -> bool:
    """Whether the checkpoint at `path` has entries under the top-level `key`."""
    from armillary.train.checkpoints.shards import read_index

    return any(name.startswith(f"{key}.") for name in read_index(path).state_dict_metadata)


def expect_serial() -> None:
    """Torch warns whenever it saves or loads without a process group; a serial run has none."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
