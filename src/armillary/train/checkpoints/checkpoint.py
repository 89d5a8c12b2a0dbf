"""Checkpoints: sharded, written beside training, complete or absent, checked when read.

A checkpoint is written to a hidden folder by all ranks (torch's distributed checkpoint), each of
which hashes its own files; rank 0 then writes complete.json and renames the folder. What carries
the name step-<number> is therefore whole. A state saved by one layout is read by any other.
"""

import contextlib
import errno
import importlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from armillary.spec import SpecError, write_atomically
from armillary.step.world import World
from armillary.train.checkpoints.saved import (
    COMPLETE,
    INDEX,
    best_step,
    checkpoint_path,
    expect_serial,
    find_fault,
    saved_steps,
    sha256,
)

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
    began_s: float = field(default_factory=time.perf_counter)
    written_s: float = 0.0
    error: BaseException | None = None


class Checkpoints:
    """The checkpoints of a run, the last `keep` of them and the best.

    Every rank calls `save`, `poll` and `finish` at the same steps. On rank 0, `on_commit` is told
    the step of each that is whole, and how many seconds its writing took.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        keep: int,
        on_commit: Callable[[int, float], None] | None = None,
    ) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self._on_commit = on_commit
        self._pending: _Pending | None = None
        self._deleting: threading.Thread | None = None
        self._group = None if world.mesh is None else dist.new_group(backend="gloo")
        if world.mesh is None:
            expect_serial()
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

        from armillary.train.checkpoints.shards import ShardWriter

        start_s = time.perf_counter()
        self._finish()
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
            hashes = {path.name: sha256(path) for path in mine}
            write_atomically(_hashes_path(pending.folder, self.world.rank), json.dumps(hashes))
            pending.written_s = time.perf_counter() - pending.began_s
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
        """Wait until the pending checkpoint is written and old ones are deleted, and commit it."""
        self._finish()
        if self._deleting is not None:
            self._deleting.join()

    def _finish(self) -> None:
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
        hashes = {INDEX: sha256(pending.folder / INDEX)}
        for rank in range(self.world.num_ranks):
            path = _hashes_path(pending.folder, rank)
            hashes |= json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
        sizes = {name: (pending.folder / name).stat().st_size for name in hashes}
        content = {"schema": 1, "step": pending.step, "sha256": hashes, "bytes": sizes}
        write_atomically(pending.folder / COMPLETE, json.dumps(content, indent=2))
        self._give_name(pending)
        if pending.best is not None:
            content = {"step": pending.step} | pending.best
            write_atomically(self.folder / "best.json", json.dumps(content) + "\n")
        self._drop_old()
        if self._on_commit is not None:
            self._on_commit(pending.step, pending.written_s)

    def _give_name(self, pending: _Pending) -> None:
        """Rename the folder once all that it holds is on the disk, and the name as well."""
        final = checkpoint_path(self.folder, pending.step)
        if final.is_dir() and find_fault(final) is None:
            shutil.rmtree(pending.folder)  # the same step again: what is whole is not put at risk
            return
        shutil.rmtree(final, ignore_errors=True)
        _sync(pending.folder)
        os.replace(pending.folder, final)
        _sync(self.folder)

    def _drop_old(self) -> None:
        """Take the names of old checkpoints away, and delete them beside training."""
        best = best_step(self.folder)
        old = [step for step in saved_steps(self.folder)[: -self.keep] if step != best]
        dropped = [self.folder / f".step-{step:08d}-old" for step in old]
        for step, hidden in zip(old, dropped, strict=True):
            with contextlib.suppress(OSError):
                os.replace(checkpoint_path(self.folder, step), hidden)
        if dropped:
            if self._deleting is not None:
                self._deleting.join()
            self._deleting = threading.Thread(target=_delete, args=(dropped,))
            self._deleting.start()


def prepare_to_save() -> None:
    """Import, beside training, what the first save needs: 0.2 to 0.4 s that no step waits for."""

    def bring() -> None:
        importlib.import_module("torch.distributed.checkpoint.state_dict")
        importlib.import_module("armillary.train.checkpoints.shards")

    threading.Thread(target=bring, daemon=True).start()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: BaseException) -> SpecError:
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
    from torch.distributed.checkpoint.api import CheckpointException

    causes = [error]
    for cause in causes:
        if isinstance(cause, CheckpointException):
            causes += [failure for failure, _ in cause.failures.values()]
        causes += [linked for linked in (cause.__cause__, cause.__context__) if linked]
    for cause in causes:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
    if shutil.disk_usage(folder).free < SPACE_OF_FULL_DISK_BYTES:
        return os.strerror(errno.ENOSPC)
    return str(causes[-1]).strip().splitlines()[-1]


def _hashes_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"


def _sync(folder: Path) -> None:
    """Have the names in `folder` on the disk; where a file system cannot, it is left at that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _delete(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
