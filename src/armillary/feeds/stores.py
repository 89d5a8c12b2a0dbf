"""Where shots live: an S3-compatible object store or a local folder, opened for Zarr.

Reads go through obstore, the client that zarr 3 offers beside fsspec (zarr documentation, "Object
Store"). It resumes a body that was cut and retries refused connections and 5xx answers; what it
gives up on at once, a body that stalls, is asked for anew here until `retry_s` is over.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, S3Store
from zarr.storage import ObjectStore, WrapperStore, ZipStore

from armillary.spec import SpecError, write_atomically

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

GUESS_RETRY_S = 60.0
GUESS_FIRST_PAUSE_S = 0.1
GUESS_LONGEST_PAUSE_S = 2.0
TIMEOUT_S = 30.0
"""One request, from connecting to the end of its body: object_store's own default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAddress:
    """Where a store is and how to ask it: `s3://bucket/folder` at an endpoint, or a local folder.

    Without keys the requests are anonymous (unsigned). `retry_s` is how long a store that is gone
    is asked again; `cache` a local folder that keeps every object read, laid out as in the store.
    """

    url: str
    endpoint: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    retry_s: float = GUESS_RETRY_S
    timeout_s: float = TIMEOUT_S
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.is_local:
            return
        parts = urlsplit(self.url)
        if parts.scheme != "s3" or not parts.netloc:
            raise SpecError(
                "store.url",
                f"{self.url!r} is no address of a store",
                "a store is s3://bucket/folder with an endpoint, or a local folder",
                "for a public https address: url='s3://mast/level2/shots' and "
                "endpoint='https://s3.echo.stfc.ac.uk'",
            )
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise SpecError(
                "store.access_key_id",
                "one key of two",
                "signed requests need access_key_id and secret_access_key; anonymous ones neither",
                "pass both, or none",
            )

    @property
    def is_local(self) -> bool:
        """True for a folder of this machine."""
        return "://" not in self.url

    @property
    def folder(self) -> Path:
        """The local folder (only where `is_local`)."""
        return Path(self.url).expanduser()

    @property
    def place(self) -> str:
        """The store in words, for messages."""
        return self.url if self.is_local or not self.endpoint else f"{self.url} at {self.endpoint}"


class PatientStore(WrapperStore[ObjectStore]):
    """A Zarr store that asks again when an answer breaks off, and may keep what it read on disk.

    Files of the cache appear whole or not at all: written beside their place, then renamed.
    """

    def __init__(self, store: ObjectStore, *, retry_s: float, cache: Path | None = None) -> None:
        super().__init__(store)
        self.retry_s = retry_s
        self.cache = cache

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The object, or None where the store has none; asked for until `retry_s` is over."""
        kept = None if self.cache is None or byte_range is not None else self.cache / key
        if kept is not None and kept.is_file():
            return prototype.buffer.from_bytes(kept.read_bytes())
        give_up_at = time.monotonic() + self.retry_s
        pause_s = GUESS_FIRST_PAUSE_S
        while True:
            try:
                answer = await self._store.get(key, prototype, byte_range)
                break
            except BaseError as lost:
                if _is_refusal(lost) or time.monotonic() + pause_s > give_up_at:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, GUESS_LONGEST_PAUSE_S)
        if kept is not None and answer is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, answer.to_bytes())
        return answer


def zarr_store(address: StoreAddress, name: str) -> Store:
    """The Zarr store of one folder (or local `.zip`) of the store, read only; nothing is read yet.

    Raises:
        SpecError: a local folder that does not exist.
    """
    if address.is_local and name.endswith(".zip"):
        return ZipStore(_local_folder(address) / name, mode="r")
    store = ObjectStore(object_store(address, name), read_only=True)
    cache = None if address.cache is None else _cache_folder(address) / name
    return PatientStore(store, retry_s=address.retry_s, cache=cache)


def object_store(address: StoreAddress, under: str = "") -> S3Store | LocalStore:
    """An obstore client whose root is the folder `under` of the address."""
    if address.is_local:
        return LocalStore(_local_folder(address) / under)
    parts = urlsplit(address.url)
    prefix = "/".join(piece for piece in (parts.path.strip("/"), under) if piece)
    endpoint = address.endpoint
    retry = {
        "max_retries": 1000,  # retry_timeout ends them
        "retry_timeout": timedelta(seconds=address.retry_s),
        "backoff": {
            "init_backoff": timedelta(seconds=GUESS_FIRST_PAUSE_S),
            "max_backoff": timedelta(seconds=GUESS_LONGEST_PAUSE_S),
            "base": 2,
        },
    }
    options = {
        "timeout": timedelta(seconds=address.timeout_s),
        "connect_timeout": timedelta(seconds=min(5.0, address.timeout_s)),
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
    }
    keys = {}
    if address.access_key_id is not None:
        keys = {
            "access_key_id": address.access_key_id,
            "secret_access_key": address.secret_access_key,
        }
    return S3Store(
        parts.netloc,
        prefix=prefix or None,
        endpoint=endpoint,
        region=address.region,
        skip_signature=address.access_key_id is None,
        virtual_hosted_style_request=False,
        client_options=options,  # type: ignore[arg-type]
        retry_config=retry,  # type: ignore[arg-type]
        **keys,  # type: ignore[arg-type]
    )


def entry_names(address: StoreAddress) -> list[str]:
    """The names right under the address: folders and files, sorted.

    Raises:
        SpecError: the store cannot be reached or refuses to list.
    """
    if address.is_local:
        return sorted(entry.name for entry in _local_folder(address).iterdir())
    store = object_store(address)
    with answering(address):
        listing = obstore.list_with_delimiter(store)
    paths = [*listing["common_prefixes"], *(item["path"] for item in listing["objects"])]
    return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)


@contextmanager
def answering(address: StoreAddress) -> Iterator[None]:
    """Turns the client's errors into ones that say what to do about the store.

    Raises:
        SpecError: `store.bucket`, `store.credentials` or `store.endpoint`.
    """
    try:
        yield
    except FileNotFoundError as absent:
        raise SpecError(
            "store.bucket",
            f"{address.place} does not exist: {_reason(absent)}",
            "the bucket and folder of url must exist at the endpoint (feeds/stores.py)",
            "check url, endpoint and region (FAIR-MAST: docs/data.md)",
        ) from absent
    except BaseError as lost:
        if _is_refusal(lost):
            how = "anonymous requests" if address.access_key_id is None else "these keys"
            raise SpecError(
                "store.credentials",
                f"{address.place} refuses {how}: {_reason(lost)}",
                "a public store answers unsigned requests; another wants the keys it knows",
                "check access_key_id and secret_access_key, or leave both out for a public store",
            ) from lost
        raise SpecError(
            "store.endpoint",
            f"{address.place} did not answer within {address.retry_s:g} s: {_reason(lost)}",
            "a store is asked again, with growing pauses, for retry_s seconds (feeds/stores.py)",
            "check the address, the network and any proxy; raise retry_s; or use a local copy",
        ) from lost


@contextmanager
def decoding(where: str, rule: str) -> Iterator[None]:
    """Turns what Zarr raises on bytes that it cannot use into one error that names the place.

    Raises:
        SpecError: at `where`; the client's own errors pass through.
    """
    try:
        yield
    except (SpecError, BaseError, OSError):
        raise
    except Exception as broken:
        raise SpecError(
            where,
            f"cannot be decoded: {(str(broken) or type(broken).__name__).splitlines()[0][:200]}",
            rule,
            "copy the shot again (and empty the cache folder, if one was given)",
        ) from broken


def _is_refusal(error: BaseError) -> bool:
    """True for an answer that asking again will not change: a status of 4xx.

    Not so 404 (no such object), 408 and 429 (later, please). Servers differ in the status and code
    of a refusal: 403 AccessDenied at Amazon, 400 UnsupportedAlgorithm from rclone 1.75 where
    an unsigned request meets a private store.
    """
    known = isinstance(error, (PermissionDeniedError, UnauthenticatedError))
    return known or re.search(r"status code: 4(?!04|08|29)\d\d", str(error)) is not None


def _local_folder(address: StoreAddress) -> Path:
    if not address.folder.is_dir():
        raise SpecError(
            "store.url",
            f"{address.folder} is no folder of this machine",
            "a local store is a folder with one <shot>.zarr for each shot (feeds/stores.py)",
            "check the path; for the public store leave url out",
        )
    return address.folder


def _cache_folder(address: StoreAddress) -> Path:
    assert address.cache is not None
    if address.is_local:
        return address.cache / "local" / address.folder.resolve().as_posix().strip("/")
    host = urlsplit(address.endpoint or "").netloc.replace(":", "_") or "aws"
    parts = urlsplit(address.url)
    return address.cache / host / parts.netloc / parts.path.strip("/")


def _reason(error: BaseException) -> str:
    """The first telling line of a client's error: S3's own code where the answer carried one."""
    text = str(error)
    for tag in ("Code", "Message"):
        begin, end = text.find(f"<{tag}>"), text.find(f"</{tag}>")
        if 0 <= begin < end:
            return text[begin + len(tag) + 2 : end]
    for mark in ("Connection refused", "dns error", "timed out", "TimedOut", "certificate"):
        if mark in text:
            return mark.lower() if mark != "TimedOut" else "timed out"
    return text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
