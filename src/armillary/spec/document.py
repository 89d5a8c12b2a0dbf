"""Documents: what rooms hand each other. Frozen, keyword-only, read from and written to JSON."""

import contextlib
import difflib
import json
import os
import stat
import time
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from armillary.spec.error import SpecError, reason


def nearest(word: str, known: Iterable[str]) -> str:
    """A fix in words: the known word nearest to `word`, or the whole list."""
    choices = sorted(known)
    return likely(word, choices) or f"use one of {', '.join(choices) or 'none'}"


def likely(word: str, known: Iterable[str]) -> str:
    """A fix in words: the known word that was probably meant; "" if there is none."""
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path`: a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def closed_to_others() -> Iterator[None]:
    """Whatever is made while it lasts cannot be written by everybody, even if the umask admits it.

    The umask is the whole process's; what it withholds besides stays withheld.
    """
    before = os.umask(stat.S_IWOTH)
    os.umask(before | stat.S_IWOTH)
    try:
        yield
    finally:
        os.umask(before)


class Document:
    """Base of the documents in `spec`: subclass it with `@dataclass(frozen=True, kw_only=True)`.

    Raises `SpecError` on an unknown key, a missing key, a value of the wrong type, or a file of
    another schema version.
    """

    __slots__ = ()
    schema: ClassVar[int] = 1
    what: ClassVar[str] = "document"

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, nested documents as dicts, with `schema`."""
        return {"schema": self.schema} | _plain_fields(self)

    def to_json(self) -> str:
        """The document as indented JSON text ending in a newline."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the document to `path` atomically."""
        write_atomically(path, self.to_json())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str | None = None) -> Self:
        """The document that `values` describe, each checked against its field's type."""
        where = where or cls.what
        found = dict(values)
        version = found.pop("schema", cls.schema)
        if version != cls.schema:
            raise SpecError(
                f"{where}.schema",
                f"version {version}",
                f"this Armillary reads {cls.what} version {cls.schema}",
                "write the file anew with this version, or use the version that wrote it",
            )
        hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
        names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        for name in found:
            if name not in names:
                raise SpecError(
                    f"{where}.{name}",
                    "unknown key",
                    f"a {cls.what} has only its own keys",
                    nearest(name, names),
                )
        checked = {
            name: _checked(value, hints[name], f"{where}.{name}") for name, value in found.items()
        }
        try:
            return cls(**checked)
        except TypeError as error:
            raise SpecError(where, str(error), f"a {cls.what} needs its keys", "add it") from None

    @classmethod
    def from_json(cls, text: str, where: str | None = None) -> Self:
        """The document in JSON `text`."""
        where = where or cls.what
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(
                where, f"not JSON: {error}", "documents are JSON", "restore the file"
            ) from None
        if not isinstance(values, dict):
            raise SpecError(
                where,
                f"a JSON {type(values).__name__}",
                "a document is a JSON object",
                "restore the file",
            )
        return cls.from_dict(values, where)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The document in the file at `path`."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(
                str(path),
                f"cannot be read: {reason(error)}",
                f"a {cls.what} is a JSON file",
                "check the path",
            ) from None
        return cls.from_json(text, path.name)


SCALARS = (str, int, float, bool)
"""The types of what holds nothing else."""


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields by name; finding them takes longer than checking values."""
    return get_type_hints(cls)


def _plain_fields(value: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    if type(value) in SCALARS:  # most of a large document
        return value
    if isinstance(value, Document):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` asks for; a whole float counts as an int, an int as a float."""
    if hint is Any or type(value) is hint in SCALARS:
        return value
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        [inner] = [option for option in options if option is not type(None)]
        return _checked(value, inner, where)
    if isinstance(hint, type) and issubclass(hint, Document):
        if isinstance(value, hint):
            return value
        _require(isinstance(value, Mapping), value, "object", where)
        return hint.from_dict(value, where)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), value, "list", where)
        inner = get_args(hint)[0]
        return tuple(_checked(entry, inner, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin in (dict, Mapping):
        _require(isinstance(value, Mapping), value, "object", where)
        inner = get_args(hint)[1]
        return {key: _checked(entry, inner, f"{where}.{key}") for key, entry in value.items()}
    return _scalar(value, hint, where)


def _scalar(value: Any, hint: type, where: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number:
        return float(value)
    if hint is int and is_number and float(value).is_integer():
        return int(value)
    _require(
        isinstance(value, hint) and not (hint is int and isinstance(value, bool)),
        value,
        hint.__name__,
        where,
    )
    return value


def _require(holds: bool, value: Any, wanted: str, where: str) -> None:
    if not holds:
        raise SpecError(
            where, f"{value!r}", f"the value is of type {wanted}", f"give a value of type {wanted}"
        )
