"""Checkpoints: sharded, written beside training, complete or absent, checked when read.

A checkpoint is written to a hidden folder by all ranks (torch's distributed checkpoint), each of
which hashes its own files; rank 0 then writes complete.json and renames the folder. What carries
the name step-<number> is therefore whole. A state saved by one layout is read by any other.
"""

import errno
import hashlib
import importlib
import json
import os
import re
import shutil
import threading
import time
import warnings
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from armillary.spec import SpecError, write_atomically
from armillary.step.world import World

COMPLETE, INDEX = "complete.json", "shards.json"
COMMIT_TIMEOUT_S = 300.0
SPACE_OF_FULL_DISK_BYTES = 2**20


@dataclass(slots=True)
class _Pending:
    """A checkpoint that is being written."""

    step: int
    folder: Path
    future: "Future[Any]"
    hashed: threading.Event
    best: dict[str, Any] | None
    error: BaseException | None = None


class Checkpoints:
    """The checkpoints of a run, the last `keep` of them and the best.

    Every rank calls `save`, `poll` and `finish` at the same steps.
    """

    def __init__(self, folder: Path, world: World, keep: int) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._pending: _Pending | None = None
        self._group = None if world.mesh is None else dist.new_group(backend="gloo")
        _expect_serial() if world.mesh is None else None
        if world.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            for torn in folder.glob(".step-*"):
                shutil.rmtree(torn, ignore_errors=True)
        if self._group is not None:
            dist.barrier(group=self._group)

    def save(self, step: int, state: dict[str, Any], best: dict[str, Any] | None = None) -> float:
        """Begin to save `state` as that after `step` steps; seconds that training was held up.

        The state is copied before this returns and written afterwards. `best` says why it is the
        best so far; it takes that place once it is whole.

        Raises: `SpecError` if the checkpoint before this one could not be written.
        """
        import torch.distributed.checkpoint as dcp

        from armillary.train.shards import ShardWriter

        start_s = time.perf_counter()
        self.finish()
        folder = self.folder / f".step-{step:08d}"
        if self.world.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder)
        if self._group is not None:
            dist.barrier(group=self._group)
        future = dcp.async_save(
            state,
            storage_writer=ShardWriter(folder),
            process_group=self._group,
            no_dist=self._group is None,
        )
        assert isinstance(future, Future)
        self._pending = _Pending(step, folder, future, threading.Event(), best)
        threading.Thread(target=self._hash_own_files, args=(self._pending,), daemon=True).start()
        return time.perf_counter() - start_s

    def _hash_own_files(self, pending: _Pending) -> None:
        """Wait for the writing to end, then leave the hashes of this rank's files beside them."""
        try:
            pending.future.result()
            mine = pending.folder.glob(f"__{self.world.rank}_*.distcp")
            hashes = {path.name: _sha256(path) for path in mine}
            write_atomically(_hashes_path(pending.folder, self.world.rank), json.dumps(hashes))
        except BaseException as error:
            pending.error = error
        finally:
            pending.hashed.set()

    def poll(self) -> None:
        """Commit the pending checkpoint if it is written by now; never waits."""
        pending = self._pending
        if pending is None or not pending.hashed.is_set():
            return
        if pending.error is not None:
            self.finish()
        if not self.world.is_first:
            self._pending = None
        elif all(_hashes_path(pending.folder, r).exists() for r in range(self.world.num_ranks)):
            self._commit(pending)

    def finish(self) -> None:
        """Wait until the pending checkpoint is written, and commit it."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if not pending.hashed.wait(COMMIT_TIMEOUT_S):
            raise TimeoutError(f"checkpoint {pending.step} not written in {COMMIT_TIMEOUT_S:.0f} s")
        if pending.error is not None:
            if self.world.is_first:
                shutil.rmtree(pending.folder, ignore_errors=True)
            raise _unwritable(pending.folder, pending.error) from pending.error
        if self.world.is_first:
            self._await_hashes(pending.folder)
            self._commit(pending)

    def _await_hashes(self, folder: Path) -> None:
        give_up_s = time.monotonic() + COMMIT_TIMEOUT_S
        while not all(_hashes_path(folder, r).exists() for r in range(self.world.num_ranks)):
            if time.monotonic() > give_up_s:
                raise TimeoutError(f"hashes missing in {folder}")
            time.sleep(0.005)

    def _commit(self, pending: _Pending) -> None:
        """Rank 0: collect the hashes, give the folder its name, and drop what is old."""
        self._pending = None
        hashes = {INDEX: _sha256(pending.folder / INDEX)}
        for rank in range(self.world.num_ranks):
            path = _hashes_path(pending.folder, rank)
            hashes |= json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
        sizes = {name: (pending.folder / name).stat().st_size for name in hashes}
        content = {"schema": 1, "step": pending.step, "sha256": hashes, "bytes": sizes}
        write_atomically(pending.folder / COMPLETE, json.dumps(content, indent=2))
        final = self.folder / f"step-{pending.step:08d}"
        if final.is_dir() and find_fault(final) is None:
            shutil.rmtree(pending.folder)  # the same step again: what is whole is not put at risk
        else:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(pending.folder, final)
        if pending.best is not None:
            content = {"step": pending.step} | pending.best
            write_atomically(self.folder / "best.json", json.dumps(content) + "\n")
        self._drop_old()

    def _drop_old(self) -> None:
        best = best_step(self.folder)
        for step in saved_steps(self.folder)[: -self.keep]:
            if step != best:
                shutil.rmtree(checkpoint_path(self.folder, step), ignore_errors=True)


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


def find_fault(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`, None if every file has its recorded hash."""
    try:
        hashes = json.loads((path / COMPLETE).read_text(encoding="utf-8"))["sha256"]
        for name, recorded in hashes.items():
            if _sha256(path / name) != recorded:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def newest_whole(folder: Path) -> tuple[int, list[str]]:
    """The step of the newest undamaged checkpoint, and what was passed over, in words.

    Raises: `SpecError` if there is none.
    """
    passed_over: list[str] = []
    for step in reversed(saved_steps(folder)):
        fault = find_fault(checkpoint_path(folder, step))
        if fault is None:
            return step, passed_over
        passed_over.append(f"checkpoint step-{step:08d} passed over: {fault}")
    raise SpecError(
        "checkpoints",
        "; ".join(passed_over) or f"none in {folder}",
        "a run goes on from an undamaged checkpoint",
        "start a new run, or restore the checkpoint's files",
    )


def load(path: Path, state: dict[str, Any], *, serial: bool = False) -> None:
    """Fill the tensors and values of `state` in place from the checkpoint at `path`.

    Raises: `SpecError` if it holds anything but tensors and plain values.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    from armillary.train.shards import PlainLoader, ShardReader

    _expect_serial() if serial else None
    try:
        dcp.load(state, storage_reader=ShardReader(path), planner=PlainLoader(), no_dist=serial)
    except CheckpointException as error:
        raise next((one for one in _causes(error) if isinstance(one, SpecError)), error) from None


def holds(path: Path, key: str) -> bool:
    """Whether the checkpoint at `path` has entries under the top-level `key`."""
    from armillary.train.shards import ShardReader

    known = ShardReader(path).read_metadata().state_dict_metadata
    return any(name.startswith(f"{key}.") for name in known)


def prepare_to_save() -> None:
    """Import, beside training, what the first save needs: 0.2 to 0.4 s that no step waits for."""

    def bring() -> None:
        importlib.import_module("torch.distributed.checkpoint.state_dict")

    threading.Thread(target=bring, daemon=True).start()


def _expect_serial() -> None:
    """Torch warns whenever it saves or loads without a process group; a serial run has none."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _causes(error: BaseException) -> list[BaseException]:
    """`error`, what every rank failed of, and what that came from."""
    from torch.distributed.checkpoint.api import CheckpointException

    causes = [error]
    for cause in causes:
        if isinstance(cause, CheckpointException):
            causes += [failure for failure, _ in cause.failures.values()]
        causes += [linked for linked in (cause.__cause__, cause.__context__) if linked]
    return causes


def _unwritable(folder: Path, error: BaseException) -> SpecError:
    for cause in _causes(error):
        if isinstance(cause, SpecError):
            return cause
    return SpecError(
        "checkpoints",
        f"{folder.parent} cannot be written: {_reason(folder.parent, error)}",
        "a run saves its state as it goes; what was saved before is kept",
        "free space or name another place with --runs, then --resume the run",
    )


def _reason(folder: Path, error: BaseException) -> str:
    """Why writing failed: the system's words for it if any rank heard them.

    torch's writer of files answers a full disk with a sentence about positions.
    """
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
    if shutil.disk_usage(folder).free < SPACE_OF_FULL_DISK_BYTES:
        return os.strerror(errno.ENOSPC)
    return str(causes[-1]).strip().splitlines()[-1]


def _hashes_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
