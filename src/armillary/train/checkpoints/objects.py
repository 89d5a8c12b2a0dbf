"""Stores of whole files by name: a folder, or a bucket of an object store."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from armillary.spec import SpecError, nearest
from armillary.spec.secrets import holds_secret

SETTING = "settings.checkpoint_store"
ASKED = ("endpoint", "region", "retry_s")
"""What may follow the question mark of an address."""


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


def check_address(url: str) -> None:
    """Refuse what is no address of a store, before anything is spent; "" is no store.

    Raises: `SpecError` that says what is wrong, and tells no secret.
    """
    if holds_secret(url):
        raise SpecError(
            SETTING,
            "a key or a password",
            "settings are written into the manifest and the report (spec/secrets.py)",
            "export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead",
        )
    if "://" not in url:
        return
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise SpecError(
            SETTING,
            repr(url),
            "a store is a folder, or s3://bucket/folder?endpoint=URL "
            "(train/checkpoints/objects.py)",
            "name one of these",
        )
    _asked(url)


def _asked(url: str) -> Mapping[str, str]:
    """What follows the question mark, by name."""
    found = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
    for name, value in found.items():
        if name not in ASKED:
            raise SpecError(
                SETTING,
                f"{name}={value} is not known",
                f"an address may tell {', '.join(ASKED)} (train/checkpoints/objects.py)",
                nearest(name, ASKED),
            )
    retry_s = found.get("retry_s", "0")
    if not retry_s.replace(".", "", 1).isdigit():
        raise SpecError(SETTING, f"retry_s={retry_s}", "retry_s is in seconds", "use retry_s=60")
    return found


def open_objects(url: str, under: str) -> Objects:
    """The store at `url`: a folder, or s3://bucket/folder?endpoint=http://host:port&region=name.

    `retry_s` may be told besides: how long a store that is gone is asked again, a minute by itself.
    Keys are those of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; they are in no file of a run.

    Raises: `SpecError` if it is neither, or the client of object stores is not installed.
    """
    check_address(url)
    if "://" not in url:
        return Folder(Path(url) / under)
    try:
        from armillary.feeds.stores import GUESS_RETRY_S, StoreAddress, object_store
    except ImportError:
        raise SpecError(
            SETTING,
            f"{url.partition('?')[0]} needs the package obstore",
            "a store is a folder, or an S3 store read by obstore",
            "pip install 'armillary[fusion]', or name a folder",
        ) from None
    parts, query = urlsplit(url), _asked(url)
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
