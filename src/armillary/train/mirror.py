"""Checkpoints on a store as well: sent on beside training, fetched where the local ones are gone.

A store that does not answer stops nothing: the run goes on, says so, and sends the next.
"""

import contextlib
import json
import os
import queue
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from armillary.spec import SpecError
from armillary.step.world import World
from armillary.train.saved import (
    COMPLETE,
    checkpoint_path,
    find_fault,
    saved_steps,
)

KEPT = 2
FINISH_S = 600.0


class Objects(Protocol):
    """A store as a mirror needs it: objects by name; whatever it raises is its not answering."""

    place: str

    def put(self, path: Path, name: str) -> None:
        """Copy the file at `path` to the object `name`."""
        ...

    def get(self, name: str, path: Path) -> None:
        """Copy the object `name` to the file at `path`."""
        ...

    def names(self) -> list[str]:
        """The names of all objects."""
        ...

    def delete(self, name: str) -> None:
        """Delete the object `name`."""
        ...


class Mirror:
    """Sends the checkpoints of a run to a store; used on rank 0, which alone is given one.

    Of a checkpoint, complete.json is sent last, and what has none is none. The newest two are kept.
    """

    def __init__(self, objects: Objects, folder: Path) -> None:
        self.objects, self.folder = objects, folder
        self._steps: queue.Queue[int | None] = queue.Queue()
        self._said: queue.Queue[str] = queue.Queue()
        self._sent: int | None = None
        self._failed = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    @classmethod
    def of(cls, url: str, folder: Path, world: World) -> "Mirror | None":
        """The mirror at `url`, under the run's name; none for "", and on other ranks than 0.

        Raises: `SpecError` if `url` is no store.
        """
        if not url or not world.is_first:
            return None
        return cls(open_objects(url, folder.parent.name), folder)

    def send(self, step: int) -> list[str]:
        """Have a whole checkpoint sent, and return at once; what there is to say of others."""
        if not self._thread.is_alive():
            self._thread.start()
        self._steps.put(step)
        return self._take_said()

    def finish(self) -> list[str]:
        """Wait until the last is sent or has failed, at most ten minutes; what there is to say."""
        if self._thread.is_alive():
            self._steps.put(None)
            self._thread.join(FINISH_S)
        return self._take_said()

    def fetch_newer(self) -> list[str]:
        """Bring the store's newest checkpoint here if it is newer than what is whole here."""
        here = [s for s in saved_steps(self.folder) if _is_whole(self.folder, s)]
        try:
            newest = max(self._steps_there(), default=-1)
            if newest <= max(here, default=-1):
                return []
            self._fetch(newest)
        except Exception as error:
            return [f"{self.objects.place} was not asked for checkpoints: {_short(error)}"]
        return [f"step-{newest:08d} fetched from {self.objects.place}"]

    def _fetch(self, step: int) -> None:
        hidden = self.folder / f".step-{step:08d}"
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        prefix = f"step-{step:08d}/"
        for name in self.objects.names():
            if name.startswith(prefix):
                self.objects.get(name, hidden / PurePosixPath(name).name)
        fault = find_fault(hidden)
        if fault is not None:
            shutil.rmtree(hidden, ignore_errors=True)
            raise OSError(f"step-{step:08d} there is not whole: {fault}")
        final = checkpoint_path(self.folder, step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(hidden, final)

    def _work(self) -> None:
        step: int | None = -1
        while step is not None:
            step = self._steps.get()
            while step is not None and not self._steps.empty():
                step = self._steps.get()  # the newest alone
            wanted = max(saved_steps(self.folder), default=None) if step is None else step
            if wanted is None or wanted == self._sent:
                continue
            try:
                self._put(wanted)
            except Exception as error:
                if not checkpoint_path(self.folder, wanted).is_dir():
                    continue  # dropped here meanwhile: newer ones are to be sent
                self._said.put(
                    f"{self.objects.place} did not take step-{wanted:08d}: {_short(error)}; "
                    "the run goes on"
                )
                self._failed = True
                continue
            if self._failed:
                self._said.put(f"{self.objects.place} takes checkpoints again: step-{wanted:08d}")
            self._sent, self._failed = wanted, False

    def _put(self, step: int) -> None:
        path = checkpoint_path(self.folder, step)
        names = [*json.loads((path / COMPLETE).read_text(encoding="utf-8"))["sha256"], COMPLETE]
        for name in names:
            self.objects.put(path / name, f"{path.name}/{name}")
        for old in sorted(self._steps_there())[:-KEPT]:
            prefix = f"step-{old:08d}/"
            there = [name for name in self.objects.names() if name.startswith(prefix)]
            for name in sorted(there, key=lambda name: not name.endswith(COMPLETE)):
                self.objects.delete(name)

    def _steps_there(self) -> list[int]:
        names = [PurePosixPath(name) for name in self.objects.names()]
        folders = [path.parent.name for path in names if path.name == COMPLETE]
        return [int(name.removeprefix("step-")) for name in folders if name.startswith("step-")]

    def _take_said(self) -> list[str]:
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._said.get_nowait())
        return found


def open_objects(url: str, under: str) -> Objects:
    """The store at `url`: a folder, or s3://bucket/folder?endpoint=http://host:port&region=name.

    `retry_s` may be told besides: how long a store that is gone is asked again, a minute by itself.
    Keys are those of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; they are in no file of a run.

    Raises: `SpecError` if it is neither, or the client of object stores is not installed.
    """
    parts = urlsplit(url)
    if "://" not in url:
        return Folder(Path(url) / under)
    try:
        from armillary.feeds.stores import GUESS_RETRY_S, StoreAddress, object_store
    except ImportError:
        raise SpecError(
            "settings.checkpoint_store",
            f"{url.partition('?')[0]} needs the package obstore",
            "a store is a folder, or an S3 store read by obstore",
            "pip install 'armillary[fusion]', or name a folder",
        ) from None
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    address = StoreAddress(
        url=f"{parts.scheme}://{parts.netloc}{parts.path}",
        endpoint=query.get("endpoint"),
        region=query.get("region", "us-east-1"),
        access_key_id=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret_access_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        retry_s=float(query.get("retry_s", GUESS_RETRY_S)),
    )
    return Bucket(object_store(address, under), address.place)


class Folder:
    """A folder as a store: on another disk, or a file system of the site."""

    def __init__(self, root: Path) -> None:
        self.root, self.place = root, str(root)

    def put(self, path: Path, name: str) -> None:
        """Copy a file here: whole, or not at all."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(path, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)

    def get(self, name: str, path: Path) -> None:
        """Copy a file from here."""
        shutil.copyfile(self.root / name, path)

    def names(self) -> list[str]:
        """The files here, by their paths."""
        return sorted(self._files()) if self.root.is_dir() else []

    def _files(self) -> Iterator[str]:
        for path in self.root.rglob("*"):
            if path.is_file() and not path.name.endswith(".partial"):
                yield path.relative_to(self.root).as_posix()

    def delete(self, name: str) -> None:
        """Delete a file, and its folder once it is empty."""
        (self.root / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.root / name).parent.rmdir()


class Bucket:
    """A bucket of an object store; the client asks again while the store does not answer."""

    def __init__(self, store: Any, place: str) -> None:
        self.store, self.place = store, place

    def put(self, path: Path, name: str) -> None:
        """Send a file, in parts where it is large."""
        import obstore

        obstore.put(self.store, name, path)

    def get(self, name: str, path: Path) -> None:
        """Fetch an object into a file."""
        import obstore

        with path.open("wb") as file:
            for chunk in obstore.get(self.store, name).stream():
                file.write(chunk)

    def names(self) -> list[str]:
        """The names of all objects of the run."""
        import obstore

        return [str(entry["path"]) for batch in obstore.list(self.store) for entry in batch]

    def delete(self, name: str) -> None:
        """Delete an object."""
        import obstore

        obstore.delete(self.store, name)


def _is_whole(folder: Path, step: int) -> bool:
    return find_fault(checkpoint_path(folder, step)) is None


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
